# Debian's nbd-client, and the NBD server of this project.
truncate -s 128M /tmp/image
sleep 100000 | serve_file unix:/tmp/socket disk=/tmp/image &
within 20 test -S /tmp/socket
nbd-client -unix /tmp/socket /dev/nbd0 -N disk
within 10 sh -c '[ "$(cat /sys/block/nbd0/size)" = 262144 ]'
mke2fs -q -t ext4 /dev/nbd0
mkdir -p /mnt/disk
mount /dev/nbd0 /mnt/disk
file_work /mnt/disk 2 120
fstrim -v /mnt/disk
umount /mnt/disk
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
within 10 gone /dev/nbd0
killall sleep
