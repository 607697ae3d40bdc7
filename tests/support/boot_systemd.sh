# Boots systemd as process 1 of namespaces of its own, for units of deploy/systemd. Run as root:
#
#   unshare --mount --propagation private sh boot_systemd.sh FOLDER
#
# FOLDER has `units` (the system's targets) and `opt` (the programs). /etc can be written and keeps
# nothing; no unit of the machine is seen, so nothing of it is started. systemd stays below a
# cgroup named like FOLDER, and ends with this process.
set -eu
folder=$1
if [ "${2-}" != inside ]; then
  mkdir -p "$folder/cgroup" "$folder/etc" "$folder/work"
  mount -t cgroup2 cgroup2 "$folder/cgroup"
  mkdir "$folder/cgroup/$(basename "$folder")"
  echo $$ >"$folder/cgroup/$(basename "$folder")/cgroup.procs"
  exec unshare --mount --pid --fork --cgroup --mount-proc --kill-child=SIGKILL \
    sh "$0" "$folder" inside
fi
# Credentials are mounted outside of a unit's own namespace.
mount --make-rshared /
umount -R /sys/fs/cgroup 2>/dev/null || true
mkdir -p /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/work" /etc
mkdir -p /run/lock /etc/systemd/system
mount -t tmpfs tmpfs /etc/systemd/system
mount --bind "$folder/opt" /opt
: >"$folder/console"
mount --bind "$folder/console" /dev/console
exec env -i container=keyturn PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  SYSTEMD_UNIT_PATH="/etc/systemd/system:$folder/units" \
  /usr/lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
