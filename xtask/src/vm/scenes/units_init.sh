#!/bin/busybox sh
# The first program of a machine whose next one is systemd. What it booted from cannot be left
# (pivot_root), and services with name spaces of their own must: all goes to another root.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin
mount -t proc none /proc
while read module; do
    [ -z "$module" ] || insmod "/modules/$module.ko" || echo "module $module does not load"
done </modules/order
mkdir /new
mount -t tmpfs -o size=70%,mode=755 none /new
cp -a /bin /etc /lib /lib64 /usr /run.sh /new
for name in dev proc sys tmp run mnt root var var/lib var/tmp; do mkdir -p "/new/$name"; done
umount /proc
exec switch_root /new /lib/systemd/systemd
