#!/usr/bin/env bash
# The image of this tree for the end-to-end tests, as .cache/e2e/xelink.tar; built when what goes
# into it has changed. Debian's packages come by debootstrap: no registry is asked. What the builders
# keep on a machine is not kept on this one (tools/apart.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
archive=$PWD/.cache/e2e/xelink.tar
base=$PWD/.cache/image/trixie-$(uname -m).tar
mkdir -p "$(dirname "$archive")" "$(dirname "$base")"

for tool in buildah debootstrap make; do
  command -v "$tool" >/dev/null || {
    echo "e2e: no $tool here to build the image with (or give one as E2E_IMAGE=ARCHIVE)"
    exit 0
  }
done

sources() {
  find Containerfile requirements*.lock pyproject.toml README.md LICENSE \
    xelink sidecar device_plugin -type f ! -path '*/__pycache__/*' -print0 |
    sort -z | xargs -0 sha256sum
}
key=$(sources | sha256sum)
if [ -f "$archive" ] && [ "$(cat "$archive.stamp" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
if [ "${1:-}" != --apart ]; then
  rm -f "$archive" "$archive.stamp"
  scratch=$(mktemp -d /tmp/xelink-e2e-image.XXXXXX)
  trap 'rm -rf --one-file-system "$scratch"' EXIT
  unshare --mount tools/apart.sh "$scratch" true 2>/dev/null || {
    echo "e2e: no image, as this machine does not give root mounts of its own"
    exit 0
  }
  echo "e2e: building the image"
  unshare --mount tools/apart.sh "$scratch" "$0" --apart "$scratch"
  exit
fi
scratch=$2

# A storage on a real disk; no container within a container.
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' \
  "$scratch" "$scratch" >"$scratch/storage.conf"
export CONTAINERS_STORAGE_CONF=$scratch/storage.conf BUILDAH_ISOLATION=chroot

debian() {
  debootstrap --variant=minbase trixie "$scratch/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} &&
    tar --create --file="$base.new" --directory="$scratch/root" . &&
    mv "$base.new" "$base"
}

build() {
  mkdir "$scratch/base"
  printf 'FROM scratch\nADD base.tar /\nCMD ["/bin/sh"]\n' >"$scratch/base/Containerfile"
  ln "$base" "$scratch/base/base.tar" 2>/dev/null || cp "$base" "$scratch/base/base.tar"
  buildah build --quiet --tag localhost/debian:e2e "$scratch/base"
  secrets=
  [ ! -f "${PIP_CONFIG_FILE:-/etc/pip.conf}" ] ||
    secrets+=" --secret id=pip.conf,src=${PIP_CONFIG_FILE:-/etc/pip.conf}"
  [ ! -f "${SSL_CERT_FILE:-}" ] || secrets+=" --secret id=ca,src=$SSL_CERT_FILE"
  # Not of the commit: what is in the tree counts.
  make image CONTAINER_TOOL=buildah BASE=localhost/debian:e2e IMAGE=localhost/xelink:e2e \
    SOURCE_DATE_EPOCH=0 IMAGE_FLAGS="$secrets"
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  buildah push --quiet localhost/xelink:e2e \
    "docker-archive:$archive.new:docker.io/library/xelink:$version"
}
if [ ! -f "$base" ] && ! debian >"$scratch/log" 2>&1; then
  tail -n 3 "$scratch/log"
  echo "e2e: no image, as Debian's packages for its base could not be had (DEBIAN_MIRROR=URL names another mirror)"
  exit 0
fi
if ! build >"$scratch/log" 2>&1; then
  tail -n 15 "$scratch/log" >&2
  echo "e2e: the image was not built" >&2
  exit 1
fi
mv "$archive.new" "$archive"
printf '%s\n' "$key" >"$archive.stamp"
