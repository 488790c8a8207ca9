#!/bin/sh
# mount(8) without helpers, by mount(2): what `remount` needs of a FUSE mount, whose own options the kernel ignores there alone. Busy it is for a moment after
# something was removed, until the kernel has heard of the last close of it.
PATH=${PATH#*:}
export LIBMOUNT_FORCE_MOUNT2=always
for _ in 1 2 3 4 5 6 7 8 9 10; do
  mount -i "$@" 2> /dev/null && exit
  sleep 0.1
done
exec mount -i "$@"
