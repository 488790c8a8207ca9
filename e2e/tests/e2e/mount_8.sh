# In a mount namespace of its own: MooseNG installed, a line in fstab, and what an administrator types.
# ROOT CONFIG DIRECTORY DIRECTORY
root=$1 config=$2 mnt=$3 other=$4

fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # CODE WORDS COMMAND...
  local code=$1 words=$2 said status=0
  shift 2
  said=$("$@" 2>&1) || status=$?
  [ "$status" = "$code" ] || fail "'$*' ended with $status instead of $code: $said"
  case $said in *"$words"*) ;; *) fail "'$*' doesn't say '$words': $said" ;; esac
}

# /opt, /etc/mooseng, /sbin and fstab as on a host on which it is installed. Others on this machine see none of it.
mount -t tmpfs tmpfs /opt
mkdir /opt/mooseng
mount --bind "$root/opt/mooseng" /opt/mooseng
mkdir overlay
sbin=$(readlink -f /sbin)
mount -t tmpfs tmpfs overlay
cp -a "$root/sbin" overlay/sbin
mount -t overlay -o "lowerdir=overlay/sbin:$sbin" overlay "$sbin"
etc=overlay/etc
mkdir -p "$etc/mooseng"
ln -s "$config" "$etc/mooseng/client.toml"
cat > "$etc/fstab" <<LINES
client $other mooseng ro,noexec,_netdev,nofail,x-systemd.automount,x-systemd.idle-timeout=60 0 0
LINES
mount -t overlay -o "lowerdir=$etc:/etc" overlay /etc

mount -t mooseng "$config" "$mnt"
[ "$(findmnt -n -o FSTYPE,SOURCE "$mnt" | tr -s ' ')" = "fuse.mooseng $config" ] || fail "findmnt shows $(findmnt -n "$mnt")"
echo by-mount-8 > "$mnt/by-mount-8"
expect 1 "unmount it" mount -t mooseng -o remount,ro "$config" "$mnt"
[ -w "$mnt/by-mount-8" ] || fail "it was remounted"
umount "$mnt"
! mountpoint -q "$mnt" || fail "umount left it"

# By its line in fstab, twice: the second time it is there already.
mount -a
findmnt -n -o FSTYPE,SOURCE,OPTIONS "$other" | tr -s ' ' | grep -q '^fuse.mooseng client ro,.*noexec' || fail "findmnt shows $(findmnt -n "$other")"
[ "$(cat "$other/by-mount-8")" = by-mount-8 ] || fail "other content"
expect 1 "Read-only file system" touch "$other/new"
mount -a
[ "$(grep -c " $other " /proc/self/mounts)" = 1 ] || fail "mount -a mounts it again"
umount "$other"
mount "$other"
umount "$other"

# What it says when it can't.
expect 32 "There is no configuration nobody.toml" mount -t mooseng nobody "$mnt"
expect 1 "Did you mean noatime" mount -t mooseng -o noatme client "$mnt"
mount -s -t mooseng -o noatme client "$mnt"
umount "$mnt"
mount -f -v -t mooseng client "$mnt"
! mountpoint -q "$mnt" || fail "mount -f mounted"
expect 1 "The form is" /sbin/mount.mooseng client

# The mounts of this namespace end with their processes, which umount(8) doesn't wait for: they run from here, and send what a collector wants still.
umount /etc "$sbin" overlay
for _ in $(seq 100); do
  ! umount /opt/mooseng 2> /dev/null || break
  sleep 0.1
done
! mountpoint -q /opt/mooseng || fail "a mount's process doesn't end"
umount /opt
