# The limits of compose.yaml, without a container engine: run as root in a mount namespace of its
# own (`unshare --mount`), it makes every mount read-only, makes sure of that, gives up all
# privilege and becomes the command.
#
#   read_only.sh UID COMMAND...
set -u
uid=$1
shift
while read -r _ _ _ _ point _; do
  # Some mounts are hidden below others; what counts is looked at below.
  mount -o remount,bind,ro "$(printf '%b' "$point")" 2>/dev/null
done </proc/self/mountinfo
for folder in / /tmp /var/tmp /dev/shm /run "$PWD" "$(dirname "$1")"; do
  [ -d "$folder" ] || continue
  if (: >"$folder/.keyturn-writes") 2>/dev/null; then
    rm -f "$folder/.keyturn-writes"
    echo "still writable: $folder" >&2
    exit 97
  fi
done
cd / || exit 97
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --inh-caps=-all \
  --bounding-set=-all -- "$@"
