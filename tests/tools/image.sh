#!/bin/sh
# Lays out what the Containerfile says in an empty root and runs it there: image.sh FOLDER CONTEXT
set -eu
folder=$1 context=$2
root=$folder/root
fail() { echo "image.sh: $*" >&2; exit 1; }
mkdir "$root"
ip link set lo up
grep -qx 'FROM scratch' "$context/Containerfile" || fail "not from scratch"
sed -n 's/^COPY //p' "$context/Containerfile" | while read -r words; do
	owner=
	case $words in --chown=*) owner=${words%% *} owner=${owner#--chown=} words=${words#* } ;; esac
	to=$root${words##* }
	case $to in */) mkdir -p "$to" ;; *) mkdir -p "${to%/*}" ;; esac
	for file in ${words% *}; do cp -rT "$context/$file" "$([ -d "$to" ] && echo "$to$file" || echo "$to")"; done
	if [ -n "$owner" ]; then chown -R "$owner" "$to"; fi
done
value() { sed -n "s/^$1 //p" "$context/Containerfile"; }
list() { value "$1" | tr -d '[],"'; }
user=$(value USER)
run() { env -i "PATH=$PATH" $(value ENV) chroot --userspec="$user" "$root" "$@"; }
# Not through the function: what a signal is sent to must be the program, not a shell around it.
# shellcheck disable=SC2046
env -i "PATH=$PATH" $(value ENV) chroot --userspec="$user" "$root" $(list ENTRYPOINT) $(list CMD) &
pid=$!
for _ in $(seq 200); do
	if run /lemonade status --admin /run/lemonade/admin.sock >"$folder/status" 2>/dev/null; then
		grep -q 127.0.0.1:8080 "$folder/status" || fail "the frontend does not listen"
		kill -TERM "$pid"
		wait "$pid" || fail "it ended with $?"
		echo "== done"
		exit 0
	fi
	kill -0 "$pid" 2>/dev/null || fail "it ended at once"
	sleep 0.1
done
fail "it does not answer"
