# One Debian, started several times: each start does the next step. /dev/nvme0n1 is mounted at /data by
# fstab, written before its mirror starts and after it has ended, watched by the initramfs, and closed
# by dormouse-close.service.
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
    mirrored /var/lib/dormouse-server
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
    # What the mirror itself had kept is older than the last writes.
    ! journal -b -1 -u dormouse-close | grep -q closed || fail "it was closed"
    follows 1
    says 'a scan, since the start of the machine: the disk was written [0-9]* times since'
    equal
    ;;
*) fail "no step $STEP" ;;
esac
