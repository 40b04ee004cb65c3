#!/bin/sh
# Installs, starts, upgrades and purges the package on a copy-on-write view of this host's root.
# In a mount, pid and network namespace of its own: package.sh FOLDER FIRST.deb SECOND.deb
set -eu
folder=$1 first=$2 second=$3
fail() { echo "package.sh: $*" >&2; exit 1; }
in_root() { chroot "$folder/root" "$@"; }

mount --make-rprivate /
mount -t tmpfs -o size=2g lemonade-package "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root" || exit 77
mount -t proc proc "$folder/root/proc"
mount --rbind /dev "$folder/root/dev"
mount -t tmpfs lemonade-run "$folder/root/run"
mount -t tmpfs lemonade-tmp "$folder/root/tmp"
# What a Lemonade that was run by hand on this host has left.
rm -rf "$folder/root/var/lib/lemonade" "$folder/root/var/log/lemonade" "$folder/root/etc/lemonade"
ip link set lo up
cp "$first" "$folder/root/tmp/first.deb"
cp "$second" "$folder/root/tmp/second.deb"
unit=/usr/lib/systemd/system/lemonade.service
wants=/etc/systemd/system/multi-user.target.wants/lemonade.service

echo "== install"
in_root dpkg --no-triggers --install /tmp/first.deb
user=$(in_root getent passwd lemonade) || fail "no user lemonade"
in_root test -e "$unit" || fail "no unit"
in_root test -L "$wants" || fail "the service is not enabled"
in_root lemonade check /etc/lemonade/lemonade.toml
[ "$(in_root stat -c %U /var/lib/lemonade)" = lemonade ] || fail "the state folder is another's"

echo "== start, as the unit does"
start() {
	command=$(in_root sed -n 's/^ExecStart=//p' "$unit")
	settings=$(in_root sed -n 's/^Environment=//p' "$unit")
	# shellcheck disable=SC2086
	chroot "$folder/root" setpriv --reuid lemonade --regid lemonade --init-groups --no-new-privs \
		--bounding-set -all,+net_bind_service --inh-caps -all,+net_bind_service --ambient-caps -all,+net_bind_service \
		env $settings $command &
	pid=$!
	for _ in $(seq 200); do
		if in_root lemonade status --admin /run/lemonade/admin.sock >"$folder/status" 2>/dev/null; then return; fi
		kill -0 "$pid" 2>/dev/null || fail "it ended at once"
		sleep 0.1
	done
	fail "it does not answer"
}
stop() {
	kill -TERM "$pid"
	wait "$pid" || fail "it ended with $?"
}
start
grep -q 127.0.0.1:8080 "$folder/status" || fail "the frontend of the packaged configuration does not listen"
kill -HUP "$pid"
in_root lemonade status --admin /run/lemonade/admin.sock >/dev/null
stop

echo "== upgrade: edits, user and state stay"
echo "# edited here" >>"$folder/root/etc/lemonade/lemonade.toml"
seed=$(in_root sh -c 'cat /var/lib/lemonade/*seed*' | sha256sum)
in_root dpkg --no-triggers --install /tmp/second.deb
version=$(in_root dpkg-query --show --showformat '${Version}' lemonade)
[ "$version" = 0.1.1-1 ] || fail "version $version after the upgrade"
in_root grep -q "# edited here" /etc/lemonade/lemonade.toml || fail "the edited configuration is lost"
[ "$(in_root getent passwd lemonade)" = "$user" ] || fail "another user"
[ "$(in_root sh -c 'cat /var/lib/lemonade/*seed*' | sha256sum)" = "$seed" ] || fail "another seed"
in_root test -L "$wants" || fail "the service is no longer enabled"
start
stop

echo "== purge"
in_root dpkg --no-triggers --purge lemonade
for path in /usr/bin/lemonade /etc/lemonade /var/lib/lemonade /var/log/lemonade "$unit" "$wants"; do
	if in_root test -e "$path" -o -L "$path"; then fail "$path is left"; fi
done
echo "== done"
