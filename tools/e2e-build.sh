#!/usr/bin/env bash
# The real programs of the end-to-end tests, built from their Go modules into .cache/e2e/bin.
# Versions and hashes are in tests/e2e/programs/*/go.mod and go.sum; what is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/.cache/e2e
programs=$PWD/tests/e2e/programs
log=$out/build.log
mkdir -p "$out/bin"

if ! command -v go >/dev/null; then
  echo "e2e: no Go here to build kubelet and its like with (install Go 1.26 or later, or give built ones as E2E_BIN=DIR)"
  exit 0
fi
export CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath -buildvcs=false" GOWORK=off

# version MODULE: as its go.mod pins it
version() { go list -m -f '{{.Version}}' "$1"; }

# build MODULE LDFLAGS: each program that the go.mod of this directory names as a tool
build() {
  local stamp="$out/$(basename "$PWD").stamp" key
  key=$(cat go.mod go.sum | sha256sum; go version)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    return
  fi
  echo "e2e: building $(basename "$PWD") $(version "$1")"
  if ! (go list -f '{{.ImportPath}}' tool | xargs nice go build -ldflags "-s -w $2" -o "$out/bin/") >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    exit 1
  fi
  printf '%s\n' "$key" >"$stamp"
}

cd "$programs/nfd"
nfd=sigs.k8s.io/node-feature-discovery
build $nfd "-X $nfd/pkg/version.version=$(version $nfd)"
if [ ! -d "$out/nfd" ] || [ "$out/nfd.stamp" -nt "$out/nfd" ]; then
  rm -rf "$out/nfd"
  cp -r --no-preserve=mode "$(go list -m -f "{{.Dir}}" $nfd)/deployment/base" "$out/nfd"
fi

cd "$programs/kubernetes"
release=$(version k8s.io/kubernetes)
parts=${release#v}
stamp="-X k8s.io/component-base/version.gitVersion=$release"
stamp+=" -X k8s.io/component-base/version.gitMajor=${parts%%.*}"
stamp+=" -X k8s.io/component-base/version.gitMinor=$(echo "$parts" | cut -d. -f2)"
build k8s.io/kubernetes "$stamp -X k8s.io/component-base/version.gitTreeState=clean"
