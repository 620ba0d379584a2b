# What all scenes use.
fail() {
    echo "FAILED: $*"
    cat /tmp/disk-errors 2>/dev/null || true
    dmesg | tail -20
    exit 1
}

# Waits up to so many seconds until a command succeeds.
within() {
    left=$(($1 * 10)); shift
    while ! "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "not in time: $*"
        sleep 0.1
    done
}

# Serves a file as a disk: serve_disk FILE [more]. Sets DISK and SERVER.
serve_disk() {
    rm -f /tmp/disk
    # Its standard input stays open.
    sleep 100000 | attach_file "$VIA" "$@" >/tmp/disk 2>/tmp/disk-errors &
    within 20 test -s /tmp/disk
    DISK=$(cat /tmp/disk)
    SERVER=$(pidof attach_file)
}

number_of() { echo "$1" | sed 's/[^0-9]//g'; }
gone() { [ "$(cat "/sys/block/${1#/dev/}/size" 2>/dev/null || echo 0)" = 0 ]; }
ended() { ! kill -0 "$1" 2>/dev/null; }
