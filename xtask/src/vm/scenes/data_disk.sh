# One Debian, started several times: each start does the next step. /dev/nvme0n1 is mounted at /data by
# fstab, written before its mirror starts and after it has ended, watched by the initramfs, and closed
# by dormouse-close.service.
export DORMOUSE_HOME=/var/lib/dormouse
STEP=$(cat /root/step 2>/dev/null || echo first)
echo "STEP $STEP, $(cut -d' ' -f1 /proc/uptime) s after the start"

journal() { journalctl --no-pager -o cat "$@"; }
live() { systemctl show -P StatusText dormouse | grep -q '1 LIVE'; }
# Waits until the mirror follows: follows SCANS, so many were made since the start.
follows() {
    end=$(($(date +%s) + 400))
    until live; do
        [ "$(date +%s)" -lt "$end" ] || { journal -b -u dormouse -u dormouse-serve -n 40; fail "it is not LIVE"; }
        sleep 0.5
    done
    echo "LIVE, $(cut -d' ' -f1 /proc/uptime) s after the start"
    journal -b -u dormouse | grep -i scan || true
    scans=$(dormouse status --json | sed -n 's/.*"scans": *\([0-9]*\).*/\1/p')
    [ "$scans" = "$1" ] || { journal -b -u dormouse -n 40; fail "$scans scans instead of $1"; }
}
says() { journal -b -u dormouse | grep -q "$1" || fail "the mirror has not said: $1"; }
# What the unit said at the last stop.
closed() { journal -b -1 -u dormouse-close | tee /tmp/closed; grep -q '^disk: closed: ' /tmp/closed || fail "it was not closed"; }
# Starts the machine anew as people do; $1 is the next step, $2 what befalls it.
again() {
    echo "$1" >/root/step
    printf %s "$2" | dd of=/dev/vdb bs=1 conv=notrunc,fsync status=none
    echo AGAIN
    systemctl reboot
    sleep 600
}
same() {
    dormouse restore disk /root/copy --force >/dev/null 2>&1 && cmp -s /root/copy /dev/nvme0n1
}
# The newest point is the disk, as it is when nothing is at work on it.
equal() {
    systemctl stop work data.mount
    within 90 same
    systemctl start data.mount work
    echo "the newest point is the disk"
}

case $STEP in
first)
    su -s /bin/sh -c 'dormouse invite /var/lib/dormouse-server me --url 127.0.0.1:7447' dormouse >/root/invite
    dormouse join "$(cat /root/invite)"
    mkdir -p /etc/dormouse
    printf '[[mirror]]\ndevice = "/dev/nvme0n1"\nvolume = "disk"\npoint-every = "2s"\nafter-reboot = "trust"\n' \
        >/etc/dormouse/mirror.toml
    systemctl start dormouse
    follows 1
    equal
    again unwritten -
    ;;
unwritten)
    closed
    follows 0
    says 'no scan: the disk was not written'
    equal
    again written W
    ;;
written)
    closed
    follows 1
    says 'a scan, since the start of the machine: the disk was written once since'
    equal
    again unwatched N
    ;;
unwatched)
    # The disk is mounted and written before anybody watches it.
    closed
    follows 1
    says 'a scan, since the start of the machine: the disk was written [0-9]* times since'
    equal
    systemctl -q disable dormouse-close
    again unclosed -
    ;;
unclosed)
    # What the mirror itself may have kept is older than the last writes.
    ! journal -b -1 -u dormouse-close | grep -q closed || fail "it was closed"
    follows 1
    equal
    ;;
*) fail "no step $STEP" ;;
esac
