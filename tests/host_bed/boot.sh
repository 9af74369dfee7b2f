# Becomes the systemd of a bed.  Run by keeper.py in namespaces of its own: all that is mounted here ends with them.
#   RUN       directory of this bed: disk/ is what it writes, root/ where it is put together
#   HOST GUEST PRODUCT   cached trees; never written
#   CHECKOUT  the sources, for /src/hyperhive
#   CONSOLE   a terminal
#   IN_MEMORY size of a tmpfs for what the bed writes; empty is *on disk*
set -eu

# /proc is still the one of the test machine, so this is our pid as it sees it.
read -r pid _ < /proc/self/stat

root=$RUN/root disk=$RUN/disk
# An overlay takes no other overlay to write on, and a machine's root has to be id-mapped, which no overlay can.
if [ -n "$IN_MEMORY" ] || [ "$(stat -f -c %T "$disk")" = overlayfs ]; then
    mount -t tmpfs -o "mode=755,size=${IN_MEMORY:-50%}" tmpfs "$disk"
fi
mkdir -p "$disk/upper" "$disk/work" "$disk/state"
mkdir -m 700 "$disk/machines"
cp -a --reflink=auto "$PRODUCT" "$disk/product"

mount -t overlay -o "lowerdir=$HOST,upperdir=$disk/upper,workdir=$disk/work" bed "$root"
mount --bind "$disk/machines" "$root/var/lib/machines"
mount --bind "$disk/state" "$root/var/lib/hyperhive"
mount --bind "$disk/product" "$root/opt/hyperhive"
mount --bind "$GUEST" "$root/srv/guest"
mount -o remount,bind,ro "$root/srv/guest"
mount --bind "$CHECKOUT" "$root/src/hyperhive"
mount -o remount,bind,ro "$root/src/hyperhive"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 "$root/sys/fs/cgroup" 2> /dev/null ||
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"

# No /dev/kmsg: the kernel's log is not this bed's.
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for node in null zero full random urandom tty fuse loop-control; do
    [ ! -e "/dev/$node" ] || cp -a "/dev/$node" "$root/dev/$node"
done
mkdir -p "$root/dev/net" "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mknod -m 666 "$root/dev/net/tun" c 10 200
: > "$root/dev/console"
mount --bind "$CONSOLE" "$root/dev/console"
mount -t devpts -o newinstance,mode=620,ptmxmode=666,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

echo "$pid" > "$RUN/pid.new"
mv "$RUN/pid.new" "$RUN/pid"
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=host-bed TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --show-status=no --log-level=notice < /dev/console > /dev/console 2>&1
