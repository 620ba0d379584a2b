# After the power cut: what the store has is the disk as it was after some write; what is
# attached again is that, too, and not before the last flush that had returned.
export DORMOUSE_HOME=/data/home
mkdir -p /data
mount -t ext4 /dev/vda /data
dormouse restore disk /data/sent
sectors verify /data/sent 9 --blocks 4096 --prefix
D=$(dormouse attach disk --write --via ublk)
sectors verify "$D" 9 --blocks 4096 --prefix --at-least "$AT_LEAST"
! sectors verify "$D" 9 --blocks 4096 --at-least $((AT_LEAST + 100000)) || fail "the judge is asleep"
dormouse detach disk
rm /data/sent
dormouse restore disk /data/sent
sectors verify /data/sent 9 --blocks 4096 --prefix --at-least "$AT_LEAST"
umount /data
