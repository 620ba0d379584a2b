#!/bin/busybox sh
# The first program of a machine.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root TERM=dumb
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mkdir -p /root
while read module; do
    [ -z "$module" ] || insmod "/modules/$module.ko" || echo "module $module does not load"
done </modules/order
ip link set lo up
cd /root
# Not the shell of busybox: that one takes its own programs for others.
dash -e /run.sh
echo "MACHINE-END $?"
poweroff -f
