# Points of a server in this machine, as disks by $VIA.
export DORMOUSE_HOME=/root/home
start_server() {
    dormouse serve /tmp/store --listen 127.0.0.1:7447 --url 127.0.0.1:7447 >/tmp/server 2>&1 &
    KEEPER=$!
    within 30 grep -q listening /tmp/server
}
start_server
dormouse join "$(dormouse invite /tmp/store vm)"

mkdir -p /tmp/a /mnt/a
for n in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/tmp/a/$n bs=300k count=1 2>/dev/null; done
truncate -s 48M /tmp/ext4
mke2fs -q -t ext4 -d /tmp/a /tmp/ext4
sums() { (cd "$1" && sha256sum 1 2 3 4 5 6 7 8); }
sums /tmp/a >/tmp/sums
dormouse mirror /tmp/ext4 --once --volume ext4

D=$(dormouse attach ext4 --via $VIA --mount /mnt/a)
dormouse attached
grep "$D /mnt/a ext4 ro" /proc/mounts || fail "$D is not mounted read-only"
sums /mnt/a | cmp - /tmp/sums || fail "the files differ"
! touch /mnt/a/x 2>/dev/null || fail "a point was written to"
cmp "$D" /tmp/ext4 || fail "the disk differs"

# Its process dies: reads wait, and go on when it is attached again.
SERVER=$(dormouse attached --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
kill -9 "$SERVER"
within 10 ended "$SERVER"
dormouse attached --json | grep -q '"state":"waiting"' || fail "$(dormouse attached)"
echo 3 >/proc/sys/vm/drop_caches
(sums /mnt/a >/tmp/sums-after) &
READS=$!
sleep 1
ended $READS && fail "what was read did not wait"
[ "$(dormouse attach ext4 --via $VIA)" = "$D" ] || fail "it is another disk"
wait $READS || fail "reads have failed"
cmp /tmp/sums-after /tmp/sums || fail "the files differ after the restart"

# The server goes away and comes back.
kill -9 $KEEPER
within 10 ended $KEEPER
echo 3 >/proc/sys/vm/drop_caches
(sums /mnt/a >/tmp/sums-away) &
READS=$!
sleep 2
start_server
wait $READS || fail "reads have failed while the server was away"
cmp /tmp/sums-away /tmp/sums || fail "the files differ after the server was away"

dormouse detach /mnt/a
within 10 gone "$D"
! grep /mnt/a /proc/mounts || fail "it is still mounted"

# With an overlay it is written to, and the point stays.
D=$(dormouse attach ext4 --via $VIA --overlay /tmp/overlay --mount /mnt/a)
file_work /mnt/a 5 60
dormouse detach ext4
D=$(dormouse attach ext4 --via $VIA)
cmp "$D" /tmp/ext4 || fail "the point has changed"

# Detached while the server is away.
kill -9 $KEEPER
dormouse detach ext4
within 10 gone "$D"
dormouse attached
