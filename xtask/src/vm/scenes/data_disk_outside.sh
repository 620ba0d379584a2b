#!/bin/sh
# In the initramfs, before any disk is watched. The first byte of /dev/vdb says what befalls this start:
# W: another system has written to the disk of data; N: the list of disks that are watched early is lost.
[ "${1:-}" != prereqs ] || exit 0
modprobe -q virtio_blk
left=100
while { [ ! -b /dev/vdb ] || [ ! -b /dev/nvme0n1 ]; } && [ "$left" -gt 0 ]; do
    left=$((left - 1))
    sleep 0.1
done
case $(dd if=/dev/vdb bs=1 count=1 2>/dev/null) in
# Behind the file system: the last block.
W) dd if=/dev/urandom of=/dev/nvme0n1 bs=4096 count=1 seek=$(($(cat /sys/block/nvme0n1/size) / 8 - 1)) && sync ;;
N) rm /etc/dormouse/early ;;
esac
exit 0
