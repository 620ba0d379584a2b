# The units of contrib/systemd, as docs/daemon.md and docs/server.md say that they are installed.
HOMED=/var/lib/dormouse

value() { systemctl show -P "$2" "$1"; }
is() { [ "$(value "$1" "$2")" = "$3" ]; }
# Says what it is instead.
must() { is "$@" || { journalctl --no-pager -n 40 -u "$1"; fail "$1: $2 is '$(value "$1" "$2")', not '$3'"; }; }
# What the daemon has told systemd by sd_notify.
told() { journalctl --no-pager -u "$1" | grep -c "Got notification message.*$2" || true; }
status() { dormouse --home "$HOMED" status --json; }
live() { is "$1" ActiveState active && value "$1" StatusText | grep -q '1 LIVE'; }
# As `within`, by the clock: each look takes its time here. Says what the units have logged.
within_log() {
    end=$(($(date +%s) + $1)); shift
    while ! "$@" >/dev/null 2>&1; do
        if [ "$(date +%s)" -ge "$end" ]; then
            journalctl --no-pager -n 30 -u dormouse -u dormouse-serve -u "dormouse-mirror@*"
            fail "not in time: $*"
        fi
        sleep 0.2
    done
}
# Scans of the daemon that runs.
scans() { status | tr -d ' \n' | sed 's/.*"scans"://; s/[^0-9].*//'; }
same() {
    dormouse --home "$HOMED" restore disk /tmp/back --force >/dev/null 2>&1 && cmp -s /tmp/back /root/image
}

systemctl log-level debug
systemctl --version | head -1

# The server: its socket first, as a user of its own.
systemctl start dormouse-serve.socket dormouse-serve.service || {
    journalctl --no-pager -n 40 -u dormouse-serve; fail "the server does not start"; }
must dormouse-serve ActiveState active
[ "$(told dormouse-serve READY=1)" -ge 1 ] || fail "the server was not told ready"
[ "$(stat -c %U /var/lib/dormouse-server)" = dormouse ] || fail "the store is another user's"
su -s /bin/sh -c 'dormouse invite /var/lib/dormouse-server me --url 127.0.0.1:7447' dormouse >/tmp/invite
dormouse --home "$HOMED" join "$(cat /tmp/invite)"
dormouse --home "$HOMED" recovery-kit /root/kit
echo "holds: the server runs in its unit; a client has joined"

truncate -s 24M /root/image
DISK=$(losetup -f)
losetup "$DISK" /root/image
mke2fs -q -F -t ext4 "$DISK"
mount -t ext4 "$DISK" /mnt

# Without a file there is nothing to do, and nothing fails.
systemctl start dormouse
must dormouse ActiveState inactive
mkdir -p /etc/dormouse
mirror() { printf '[[mirror]]\ndevice = "%s"\nvolume = "disk"\npoint-every = "%s"\n' "$DISK" "$1"; }
mirror 2s >/etc/dormouse/mirror.toml
systemctl start dormouse || { journalctl --no-pager -n 40 -u dormouse; fail "it does not start"; }
must dormouse ActiveState active
[ "$(told dormouse READY=1)" = 1 ] || fail "start returned before READY"
within_log 60 live dormouse
echo "holds: started, ready, LIVE: $(value dormouse StatusText)"

systemctl reload dormouse || fail "reload"
must dormouse ActiveState active
[ "$(told dormouse RELOADING=1)" = 1 ] || fail "RELOADING was not told"
echo 'nonsense = 1' >>/etc/dormouse/mirror.toml
systemctl reload dormouse || true
within_log 10 sh -c 'systemctl show -P StatusText dormouse | grep -q "the last reload failed"'
mirror 2s >/etc/dormouse/mirror.toml
systemctl reload dormouse
within_log 20 live dormouse
value dormouse StatusText | grep -q failed && fail "the failure is told for ever"
echo "holds: reloaded; a wrong file leaves all as it was, and is told"

journalctl --no-pager -o json -u dormouse DORMOUSE_VOLUME=disk DORMOUSE_STATE=LIVE | grep -q DORMOUSE_STATE ||
    journalctl --no-pager -o json -u dormouse DORMOUSE_VOLUME=disk | grep -q '"DORMOUSE_STATE"' ||
    fail "the journal has no fields of ours"
echo "holds: fields in the journal"

# Killed: it comes back, and what was written meanwhile is sent without a scan.
systemctl kill --kill-who=main -s KILL dormouse
echo written >/mnt/while-dead
sync
within_log 30 is dormouse NRestarts 1
within_log 60 live dormouse
[ "$(scans)" = 0 ] || fail "$(scans) scans after kill -9"
echo "holds: killed with -9, it was back without a scan"

# Hung: the watchdog ends it, and it comes back.
mkdir -p /etc/systemd/system/dormouse.service.d
printf '[Service]\nWatchdogSec=6s\nTimeoutAbortSec=2s\n' >/etc/systemd/system/dormouse.service.d/soon.conf
systemctl daemon-reload
systemctl restart dormouse
within_log 60 live dormouse
before=$(told dormouse WATCHDOG=1)
sleep 8
[ "$(told dormouse WATCHDOG=1)" -gt "$before" ] || fail "no sign of life within 8 s"
must dormouse ActiveState active
restarts=$(value dormouse NRestarts)
kill -STOP "$(value dormouse MainPID)"
echo "hung" >/mnt/while-hung
within_log 40 is dormouse NRestarts $((restarts + 1))
within_log 60 live dormouse
[ "$(scans)" = 0 ] || fail "$(scans) scans after the watchdog"
echo "holds: hung, the watchdog ended it; no scan"

# The server killed: its socket stays, and the mirror goes on by itself.
systemctl kill --kill-who=main -s KILL dormouse-serve
echo "no server" >/mnt/without-server
sync
within_log 30 is dormouse-serve NRestarts 1
must dormouse-serve.socket ActiveState active
within_log 60 live dormouse
echo "holds: the server killed with -9; the mirror went on"

# A clean stop.
umount /mnt
systemctl stop dormouse
must dormouse ActiveState inactive
must dormouse Result success
[ "$(told dormouse STOPPING=1)" -ge 1 ] || fail "STOPPING was not told"
within_log 20 same
echo "holds: stopped, and the newest point is the disk"

# One device by its instance.
UNIT=$(systemd-escape --template=dormouse-mirror@.service --path "$DISK")
mount -t ext4 "$DISK" /mnt
echo instance >/mnt/instance
systemctl start "$UNIT" || { journalctl --no-pager -n 40 -u "$UNIT"; fail "$UNIT does not start"; }
within_log 60 live "$UNIT"
systemctl kill --kill-who=main -s KILL "$UNIT"
within_log 30 is "$UNIT" NRestarts 1
within_log 60 live "$UNIT"
umount /mnt
systemctl stop "$UNIT"
must "$UNIT" Result success
dormouse --home "$HOMED" volumes
echo "holds: $UNIT"
systemctl stop dormouse-serve.service dormouse-serve.socket
must dormouse-serve Result success
