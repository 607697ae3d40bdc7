#!/bin/sh
# The service `first-run` of compose.yaml: makes the keys, the settings and the broker's users.
#
# Each folder of /settings is a volume for the processes that need what is in it, and for no other.
# The workers' file comes last: without it, a run was interrupted, nothing else has started, and
# this one begins again. With it, nothing is changed.
set -eu
umask 077
settings=${1:-/settings}
owner=${2:-10001:10001}

if [ -e "$settings/workers/keyturn.env" ]; then
  echo "The keys and settings exist."
  exit 0
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
keyturn init --dir "$made" >"$made/files"
keyturn --env-file "$made/keyturn.env" broker-users --role all \
  --publisher dev --publisher gateway --publisher console \
  --save-to "$made/addresses" >"$made/definitions.json" 2>"$made/notes" ||
  { cat "$made/notes" >&2; exit 1; }

# put FILE FOLDER BROKER_USER: with the address of this user in place of the broker's.
put() {
  address=$(sed -n "/^# $3\$/{n;p}" "$made/addresses")
  [ -n "$address" ]
  sed "s|^KEYTURN_AMQP_URL=.*|$address|" "$made/$1" >"$settings/$2/$1.new"
  chown "$owner" "$settings/$2" "$settings/$2/$1.new"
  mv "$settings/$2/$1.new" "$settings/$2/$1"
}

# The passwords of the definitions are hashes, and the broker has a user of its own.
mkdir -p "$settings/broker/conf.d"
cat >"$settings/broker/conf.d/keyturn.conf" <<END
load_definitions = /etc/keyturn/definitions.json
loopback_users = none
log.console = true
log.console.level = warning
END
cat "$made/definitions.json" >"$settings/broker/definitions.json"
chmod -R a+rX "$settings/broker"

cat "$made/storage.env" >"$settings/storage/storage.env"
: >"$settings/console/passwords"
put publisher.env publisher dev
put gateway.env gateway gateway
put console.env console console
# For a program on this machine: through the published ports.
sed -e 's|@broker:|@127.0.0.1:|' -e 's|//storage:|//127.0.0.1:|' "$settings/publisher/publisher.env" \
  >"$settings/publisher/host.env"
chown "$owner" "$settings/storage" "$settings/storage/storage.env" "$settings/console/passwords" \
  "$settings/publisher/host.env"
put keyturn.env workers all
echo "Made keys and settings, and the broker's users."
