# One machine, started several times: each start does the next step, and finds on /dev/vda what the
# ones before have left. /dev/nvme0n1 is the disk that is mirrored.
mount -t bpf bpf /sys/fs/bpf
mkdir -p /mnt/state /mnt/disk
[ "$(dd if=/dev/vda bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1 | tr -d ' \n')" = 53ef ] || mke2fs -q -t ext4 /dev/vda
mount /dev/vda /mnt/state
export DORMOUSE_HOME=/mnt/state/home
STEP=$(cat /mnt/state/step 2>/dev/null || echo first)
echo "STEP $STEP"

start_server() {
    dormouse serve /mnt/state/store --listen 127.0.0.1:7447 --url 127.0.0.1:7447 >/tmp/server 2>&1 &
    KEEPER=$!
    within 90 grep -q listening /tmp/server
}
is_live() { dormouse status --json 2>/dev/null | grep -q '"state": *"LIVE"'; }
# Begins the mirror, and waits until it follows the disk: begin SCANS, so many were made.
begin() {
    dormouse mirror /dev/nvme0n1 --volume disk --after-reboot trust --point-every 1s 2>/tmp/mirror &
    MIRROR=$!
    within 150 is_live
    scans=$(dormouse status --json | sed -n 's/.*"scans": *\([0-9]*\).*/\1/p')
    grep -E 'scan|SCAN' /tmp/mirror || true
    [ "$scans" = "$1" ] || { cat /tmp/mirror; fail "$scans scans instead of $1"; }
}
says() { grep -q "$1" /tmp/mirror || { cat /tmp/mirror; fail "the mirror has not said: $1"; }; }
# Ends it, and waits until it has.
finish() {
    kill "$MIRROR"
    within 90 ended "$MIRROR"
    says 'closed: '
}
same() {
    dormouse restore disk /tmp/copy --force >/dev/null
    cmp -s /tmp/copy /dev/nvme0n1
}
comes_back() { within 90 same; rm -f /tmp/copy; }
work() {
    mount /dev/nvme0n1 /mnt/disk
    dd if=/dev/urandom of=/mnt/disk/$1 bs=64k count=40 2>/dev/null
    umount /mnt/disk
}
# Starts the machine anew; the next step is $1.
again() {
    echo "$1" >/mnt/state/step
    kill "$KEEPER" 2>/dev/null || true
    within 30 ended "$KEEPER"
    umount /mnt/state
    sync
    echo "AGAIN"
    reboot -f
    sleep 60
}

case $STEP in
first)
    mke2fs -q -t ext4 /dev/nvme0n1
    start_server
    dormouse join "$(dormouse invite /mnt/state/store vm)"
    begin 1
    work one
    comes_back
    finish
    again unwritten
    ;;
unwritten)
    # Nobody has written: no scan, and what is written now is followed.
    start_server
    begin 0
    says 'no scan: the disk was not written'
    work two
    comes_back
    finish
    again written
    ;;
written)
    # Another system writes one block before the mirror is there.
    dd if=/dev/urandom of=/dev/nvme0n1 bs=4k count=1 seek=9000 oflag=direct 2>/dev/null
    start_server
    begin 1
    says 'a scan, since the start of the machine: the disk was written once since'
    comes_back
    finish
    again pinned
    ;;
pinned)
    # The disk is in use before the mirror is there; but it is watched.
    dormouse track pin /dev/nvme0n1
    work three
    start_server
    begin 0
    says 'no scan: the disk was not written'
    comes_back
    finish
    # In use after the mirror has ended: what was kept is worth nothing, and is kept anew at the stop.
    work four
    dormouse track save | tee /tmp/saved
    grep -q '^disk: closed: ' /tmp/saved || fail "it is not kept"
    again saved
    ;;
saved)
    start_server
    begin 0
    says 'no scan: the disk was not written'
    comes_back
    finish
    again emptied
    ;;
emptied)
    # Another system discards, which no count of writes tells.
    blkdiscard /dev/nvme0n1
    start_server
    again after-emptied
    ;;
after-emptied)
    start_server
    begin 1
    says 'a scan, since the start of the machine: block .* has another content'
    comes_back
    finish
    # The tracker is lost: what was kept stands in for it, once.
    rm -r /sys/fs/bpf/dormouse/disk-*
    begin 0
    says 'no scan'
    kill -9 "$MIRROR"
    within 10 ended "$MIRROR"
    rm -r /sys/fs/bpf/dormouse/disk-*
    begin 1
    finish
    # Who ends the tracker wants a scan.
    dormouse untrack disk
    begin 1
    finish
    ;;
*) fail "no step $STEP" ;;
esac
