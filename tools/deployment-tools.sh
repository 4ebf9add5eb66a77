#!/usr/bin/env bash
# Fetches what the deployment tests need beside Python, into .cache/tools of this tree:
#   bin/kubectl   built from its Go module (kustomize is in it), where there is none
#   bin/promtool  out of Debian's package, where there is none; the package is not installed
#   bin/cdi-resolve  built from tests/e2e/programs/cdi, which pins the library that runtimes use
#   crds/         the definitions of the custom resources that overlays/ use, from pinned Go modules
# Fails when something is missing in the end; the tests that need it skip then, and say so.
set -euo pipefail
cd "$(dirname "$0")/.."

KUBECTL=v0.36.3 # k8s.io/kubectl: Kubernetes 1.36
CERT_MANAGER=v1.21.2
PROMETHEUS_OPERATOR=v0.85.0

tools=$PWD/.cache/tools
mkdir -p "$tools/bin" "$tools/crds"
PATH=$PATH:$tools/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
code=0

has() { command -v "$1" >/dev/null; }

missing() {
  echo "missing: $*" >&2
  code=1
}

# kubectl is no program of its own module, so that `go install` cannot make it.
build_kubectl() (
  cd "$scratch"
  cat >main.go <<'GO'
package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() { cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()) }
GO
  go mod init kubectl &&
    go get "k8s.io/kubectl/pkg/cmd@$KUBECTL" "k8s.io/component-base/cli@$KUBECTL" &&
    CGO_ENABLED=0 go build -trimpath -ldflags=-s -o "$tools/bin/kubectl" .
) >"$scratch.log" 2>&1

build_cdi_resolve() (
  cd tests/e2e/programs/cdi &&
    CGO_ENABLED=0 GOWORK=off go build -mod=readonly -trimpath -buildvcs=false -ldflags=-s \
      -o "$tools/bin/cdi-resolve" .
) >"$scratch.log" 2>&1

extract_promtool() (
  cd "$scratch"
  # A fresh machine has no lists of packages yet.
  { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } &&
    dpkg-deb -x prometheus_*.deb prometheus &&
    cp prometheus/usr/bin/promtool "$tools/bin/"
) >"$scratch.log" 2>&1

# crds MODULE VERSION FOLDER FILE...
crds() {
  local module=$1 version=$2 folder=$3 directory
  shift 3
  directory=$(cd "$scratch" && GOFLAGS=-mod=mod go mod download -json "$module@$version" |
    sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && [ -n "$directory" ] || return 1
  for file in "$@"; do
    install -m 644 "$directory/$folder/$file" "$tools/crds/"
  done
}

if ! has kubectl; then
  if ! has go; then
    missing "kubectl: install it, or Go to build it"
  elif ! build_kubectl; then
    missing "kubectl: $(tail -n 1 "$scratch.log")"
  fi
fi
# Always: it is ours, and Go makes nothing again that is the same.
if ! has go; then
  missing "cdi-resolve: install Go to build it"
elif ! build_cdi_resolve; then
  missing "cdi-resolve: $(tail -n 1 "$scratch.log")"
fi
if ! has promtool; then
  if ! has apt-get; then
    missing "promtool: install Prometheus"
  elif ! extract_promtool; then
    missing "promtool: $(tail -n 1 "$scratch.log")"
  fi
fi
has openssl || missing "openssl: install it"
if ! has go; then
  missing "definitions of custom resources: install Go"
else
  crds github.com/cert-manager/cert-manager "$CERT_MANAGER" deploy/crds \
    cert-manager.io_certificates.yaml cert-manager.io_issuers.yaml ||
    missing "definitions of cert-manager $CERT_MANAGER"
  crds github.com/prometheus-operator/prometheus-operator "$PROMETHEUS_OPERATOR" \
    example/prometheus-operator-crd \
    monitoring.coreos.com_podmonitors.yaml monitoring.coreos.com_prometheusrules.yaml ||
    missing "definitions of the Prometheus operator $PROMETHEUS_OPERATOR"
fi
rm -f "$scratch.log"
exit "$code"
