#!/usr/bin/env bash
# The README's two commands where nobody has been before: a root file system of Debian with Python,
# its venv, make and git and nothing else, another user, an empty home, an empty environment, no
# caches. What is tried is the last commit, cloned.
#
#   tools/fresh.sh [SUITE...]     Debian's names: bookworm (Python 3.11), trixie (3.13); both
#
# Needs root and debootstrap. DEBIAN_MIRROR=URL names another mirror. Of this machine, pip's
# configuration comes along (PIP_CONFIG_FILE or /etc/pip.conf, and the certificates that it names),
# as the index may be known there only.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "fresh: $*" >&2
  exit 1
}
[ "$(id -u)" = 0 ] || fail "it takes root, for a root file system of its own"
command -v debootstrap >/dev/null || fail "debootstrap is not here (Debian: apt-get install debootstrap)"
git diff --quiet HEAD || echo "fresh: what is not committed is not tried"

scratch=$(mktemp -d /tmp/xelink-fresh.XXXXXX)
trap 'rm -rf --one-file-system "$scratch"' EXIT

# prepare SUITE: the root file system, its user, and the clone
prepare() {
  local root=$scratch/$1 pip=${PIP_CONFIG_FILE:-/etc/pip.conf} cert
  debootstrap --variant=minbase --include=python3,python3-venv,make,git \
    "$1" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$scratch/log" 2>&1 ||
    fail "no root file system of $1: $(tail -n 1 "$scratch/log")"
  chroot "$root" useradd --create-home --shell /bin/bash someone
  git clone --quiet --no-hardlinks . "$root/home/someone/xelink"
  chroot "$root" chown --recursive someone: /home/someone
  cp /etc/resolv.conf "$root/etc/"
  echo '127.0.0.1 localhost' >"$root/etc/hosts" # which every machine and container has
  if [ -f "$pip" ]; then
    cp "$pip" "$root/etc/pip.conf"
    sed -n 's/^ *cert *= *//p' "$pip" | while read -r cert; do
      install -D -m 644 "$cert" "$root$cert"
    done
  fi
}

# inside SUITE COMMAND...: as that user, with processes and mounts that end with the command
inside() {
  local root=$scratch/$1
  shift
  # shellcheck disable=SC2016 # the inner shell expands its own arguments
  unshare --mount --pid --ipc --uts --fork --kill-child bash -euc '
    root=$1 && shift
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    exec chroot --userspec=someone: "$root" /usr/bin/env -i \
      HOME=/home/someone PATH=/usr/local/bin:/usr/bin:/bin sh -c "cd ~/xelink && exec \"\$@\"" sh "$@"
  ' bash "$root" "$@" </dev/null
}

[ $# -gt 0 ] || set -- bookworm trixie
for suite in "$@"; do
  began=$SECONDS
  prepare "$suite"
  echo "fresh: $suite: $(inside "$suite" python3 -c 'import ensurepip, sys
print("Python", sys.version.partition(" ")[0] + ", pip", ensurepip.version())')"
  for target in demo test; do
    started=$SECONDS
    inside "$suite" make "$target" || fail "$suite: make $target failed"
    echo "fresh: $suite: make $target: $((SECONDS - started)) s"
  done
  [ -z "$(inside "$suite" git status --porcelain)" ] ||
    fail "$suite: the two commands left files that git does not ignore"
  rm -rf --one-file-system "${scratch:?}/$suite"
  echo "fresh: $suite: green in $((SECONDS - began)) s"
done
