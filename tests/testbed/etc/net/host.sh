#!/bin/sh
# Becomes one host of the testbed: started by the supervisor in fresh mount, network and UTS namespaces, it plugs itself into
# the bridge, makes the overlay its root and stays as the process that holds the namespaces.
#   host.sh NAME FQDN ADDRESS BASE SHARED GPUS
# BASE: tmpfs of the bed, with the root directory bound at BASE/root. SHARED: directory to show as /leonardo, or "-".
# GPUS: how many /dev/nvidia* to show; they only have to be devices.
set -eu
name=$1 fqdn=$2 address=$3 base=$4 shared=$5 gpus=$6

hostname "$fqdn"
ip link set lo up
ip link add eth0 type veth peer name "v-$name" netns 1
nsenter --net=/proc/1/ns/net ip link set "v-$name" master bridge up
ip address add "$address/16" dev eth0
ip link set eth0 up

here=$base/hosts/$name
mkdir -p "$here/upper" "$here/work" "$here/root"
mount -t overlay overlay -o "lowerdir=$base/root,upperdir=$here/upper,workdir=$here/work" "$here/root"
cd "$here/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755,nosuid dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
# Bound, not made: mknod is refused in many containers.
show() { # device as-device
    : >"dev/$2"
    mount --bind "/dev/$1" "dev/$2"
}
for device in null zero full random urandom tty; do
    if [ -e "/dev/$device" ]; then
        show "$device" "$device"
    fi
done
# A job's user mounts CVMFS. Where no udev has been, /dev/fuse of this machine is root's alone: made, if that may be.
if [ -e /dev/fuse ]; then
    mknod -m 0666 dev/fuse c 10 229 2>/dev/null || show fuse fuse
fi
gpu=0
while [ "$gpu" -lt "$gpus" ]; do
    show null "nvidia$gpu"
    gpu=$((gpu + 1))
done
if [ "$shared" != - ]; then
    mkdir -p leonardo
    mount --bind "$shared" leonardo
fi

# The overlay has to be the mount point "/" itself, or HTCondor's starter fails with "Failed to unshare the mount namespace".
pivot_root . mnt
cd /
umount -l /mnt
echo ready
exec sleep infinity >/dev/null 2>&1
