# Writes to a network disk by ublk, whose home and store lie on /dev/vda, until the power goes.
export DORMOUSE_HOME=/data/home
mkdir -p /data
mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /data
dormouse join /data/store
dormouse create disk 16MiB
D=$(dormouse attach disk --write --via ublk)
sectors write "$D" 9 --blocks 4096
