#!/usr/bin/env bash
# Runs a command that can change no file of this machine, in a namespace of mounts of its own:
#
#   unshare --mount tools/apart.sh DIRECTORY COMMAND...
#
# Each directory of the machine has a layer above it, in memory. Whatever is written goes there and
# ends with the namespace: no path has to be known, or made, beforehand. What the programs of
# tests/e2e and builders of images keep is not seen, either: the command begins as on a machine where
# none of them ever ran. The tree, and DIRECTORY on a real disk, stay as they are, and can be written.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1
shift

machine=/run/machine layers=/run/layers
# Where the programs keep their state.
blank=(/etc/{cdi,cni,kubernetes} /opt/{cni,containerd} /usr/libexec/kubernetes
  /var/lib/{cni,containerd,containers,etcd,kubelet,xelink-demo} /var/log)

# layer DIRECTORY: cover it with a layer that takes what is written there
layer() {
  local own=$layers$1
  [ -d "$1" ] && mkdir -p "$own"/.layer/{upper,work} &&
    chmod --reference="$machine$1" "$own/.layer/upper" &&
    chown --reference="$machine$1" "$own/.layer/upper" &&
    mount -t overlay layer "$1" 2>/dev/null \
      -o "lowerdir=$machine$1,upperdir=$own/.layer/upper,workdir=$own/.layer/work"
}

# read_only PATH: show what the machine has there, and let nobody change it
read_only() {
  mount --bind "$machine$1" "$1" 2>/dev/null &&
    { mount -o remount,bind,ro "$1" || { umount "$1" && false; }; }
}

# below DIRECTORY: name what is mounted there
below() {
  findmnt --list --noheadings --output TARGET | sed -n "s|^$machine\\($1/\\)|\\1|p"
}

# Nothing mounted here is seen outside.
mount --make-rprivate /
cat /etc/resolv.conf >"$work/resolv.conf" 2>/dev/null || true # it may be a link into /run
mount -t tmpfs -o mode=0755 run /run
mkdir -m 0700 "$machine" "$layers"
mount --rbind / "$machine"
for directory in /*; do
  [ -d "$directory" ] && [ ! -L "$directory" ] || continue
  case $directory in /dev | /proc | /run | /sys) continue ;; esac
  layer "$directory" || read_only "$directory"
  # The layer covers what is mounted below. What cannot be shown again stays covered.
  while read -r each; do
    case $each in
      "$PWD" | "$PWD"/* | "$work"/* | /etc/resolv.conf) ;;
      *) layer "$each" || read_only "$each" || true ;;
    esac
  done < <(below "$directory")
done
for each in "$PWD" "$work"; do
  mount --rbind "$machine$each" "$each"
done
umount --lazy "$machine"
mount -o remount,bind,ro /
[ ! -d /dev/shm ] || mount -t tmpfs -o mode=1777 shm /dev/shm
rm -f /etc/resolv.conf
cp "$work/resolv.conf" /etc/resolv.conf
for each in "${blank[@]}"; do
  mkdir -p "$each" "$work/host$each"
  mount --bind "$work/host$each" "$each"
done
# Among ourselves mounts are seen, as kubelet wants it.
mount --make-rshared /
cd "$PWD"
exec "$@"
