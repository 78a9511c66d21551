#!/bin/busybox sh
# The first program of the guest: loads the modules, lays a layer in memory over the host's root, and runs the command
# there. What vm.py shares as "control" holds `start` (what to run), `shares`, and afterwards `status`.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

say() { echo "init: $*" > /dev/kmsg; }
off() { echo o > /proc/sysrq-trigger; sleep 10; }
die() { say "$*"; off; }

while read -r module; do
    insmod "/mods/$module.ko" || say "the module $module does not load"
done < /mods/order

# The packages lie over the host's files, and what the guest writes over both.
nine=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $nine,ro,cache=loose hostroot /host || die "no root"
mount -t 9p -o $nine,ro,cache=loose packages /packages || die "no packages"
mount -t tmpfs -o mode=755,size=90% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o "lowerdir=/packages:/host,upperdir=/rw/upper,workdir=/rw/work" overlay /new || die "no overlay"
mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp
mount --move /dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount --move /proc /new/proc
mount --move /sys /new/sys
mount -t tmpfs -o mode=755 run /new/run
mkdir /new/run/control
mount -t 9p -o $nine,cache=none control /new/run/control
at=0
while read -r share; do
    mkdir -p "/new$share"
    mount -t 9p -o $nine,cache=mmap "share$at" "/new$share"
    at=$((at + 1))
done < /new/run/control/shares

hostname guest
ulimit -l unlimited
ulimit -n 65536
stty raw -echo < /new/dev/hvc0
chroot /new /bin/bash /run/control/start > /new/dev/hvc0 2>&1 < /new/dev/null
echo $? > /new/run/control/status
off
