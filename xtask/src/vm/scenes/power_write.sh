# Writes to a disk by ublk that lies on /dev/vda, until the power goes.
VIA=ublk
serve_disk /dev/vda --label power
sectors write "$DISK" 9 --blocks 4096
