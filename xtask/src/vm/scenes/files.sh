# An ext4 on a disk by $VIA; who serves it is killed in the middle of work, twice.
truncate -s 160M /tmp/image
serve_disk /tmp/image --label scene
mke2fs -q -t ext4 "$DISK"
mkdir -p /mnt/disk
mount "$DISK" /mnt/disk

file_work /mnt/disk 1 900 >/tmp/work 2>&1 &
WORK=$!
for round in 1 2; do
    sleep 2
    ended $WORK && fail "the work was done before the kill: $(cat /tmp/work)"
    kill -9 "$SERVER"
    sleep 1
    serve_disk /tmp/image --label scene --resume "$(number_of "$DISK")"
    echo "killed and resumed $DISK"
done
wait $WORK || fail "$(cat /tmp/work)"
cat /tmp/work

rm -f /mnt/disk/file-*
sync
before=$(du -k /tmp/image | cut -f1)
fstrim -v /mnt/disk
after=$(du -k /tmp/image | cut -f1)
echo "the image took $before KiB, and $after KiB after fstrim"
[ "$after" -lt "$before" ] || fail "fstrim freed nothing"
umount /mnt/disk
e2fsck -fn "$DISK"

# What is written zeros is zeros, also where a hole would do.
dd if=/dev/urandom of="$DISK" bs=1M count=4 conv=fsync 2>/dev/null
blkdiscard -z -o 1048576 -l 1048576 "$DISK" 2>/dev/null || dd if=/dev/zero of="$DISK" bs=1M seek=1 count=1 conv=fsync 2>/dev/null
[ "$(dd if=/tmp/image bs=1M skip=1 count=1 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] || fail "no zeros"
[ "$(dd if=/tmp/image bs=1M skip=2 count=1 2>/dev/null | tr -d '\0' | wc -c)" -gt 1000 ] || fail "too many zeros"

# The end: the disk is gone.
killall sleep
within 20 ended "$SERVER"
within 20 gone "$DISK"
cat /tmp/disk-errors
