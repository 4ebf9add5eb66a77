#!/usr/bin/env bash
# tests/e2e on nodes of real programs, in namespaces of their own (mounts, processes, network): what
# the programs start, mount, write or listen on is gone with them, however the run ends. What a
# namespace does not hold (cgroups, the temporary directory) is removed here at the end. A run that
# leaves anything behind has failed.
#
#   tools/e2e-run.sh [PYTEST ARGUMENTS]    without any, the tests are split over three nodes
#   tools/e2e-run.sh --prepare             build what is told with, and nothing else
#
# E2E_BIN=DIR        ready-made programs instead of built ones (and NFD's deployment/base as DIR/nfd)
# E2E_IMAGE=ARCHIVE  a ready-made image instead of a built one
# E2E_LOGS=DIR       where the logs of a run that failed are kept (.cache/e2e/logs)
# E2E_REQUIRED=1     what is missing is an error, not a reason to skip
set -euo pipefail
cd "$(dirname "$0")/.."

cache=$PWD/.cache/e2e

skip() {
  if [ -n "${E2E_REQUIRED:-}" ]; then
    echo "e2e: FAILED, nothing was run: $*" >&2
    exit 1
  fi
  echo "e2e: skipped: $*"
  exit 0
}

# lack WHAT: some tests need it, and are skipped
lack() {
  [ -z "${E2E_REQUIRED:-}" ] || skip "$*"
  echo "e2e: some tests will be skipped: $*"
}

own_namespaces=(unshare --mount --pid --net --uts --ipc --fork --kill-child --mount-proc)

[ "$(id -u)" = 0 ] || skip "it takes root, for namespaces, containers and device nodes"
[ "$(uname -m)" = x86_64 ] || skip "XPU Manager's DaemonSet is for amd64, this machine is $(uname -m)"
for process in /proc/[0-9]*/comm; do
  if [ "$(cat "$process" 2>/dev/null)" = kubelet ]; then
    skip "refused, a kubelet runs here (process $(basename "$(dirname "$process")"))"
  fi
done
if [ -n "$(ls -A /var/lib/kubelet 2>/dev/null)" ]; then
  skip "refused, /var/lib/kubelet holds files of a kubelet; run this on a machine that is no node"
fi
mkdir -p "$cache"
exec 9<"$cache"
flock --nonblock 9 || { echo "e2e: waiting for another run in this tree" && flock 9; }

bin=$(realpath -m "${E2E_BIN:-$cache/bin}")
export PATH=$bin:$PATH:/usr/sbin:/sbin
image=
[ -n "${E2E_IMAGE:-}" ] || { tools/e2e-image.sh & image=$!; }
built=yes
[ -n "${E2E_BIN:-}" ] || tools/e2e-build.sh || built=
[ -z "$image" ] || wait "$image"
[ -n "$built" ] || skip "kubelet and its like could not be built (see above)"
definitions() { ls .cache/tools/crds/*.yaml >/dev/null 2>&1; }
definitions || tools/deployment-tools.sh || true
[ "${1:-}" != --prepare ] || exit 0
definitions || lack "no definitions of custom resources (make deployment-tools)"
export E2E_IMAGE=${E2E_IMAGE:-$cache/xelink.tar}
[ -f "$E2E_IMAGE" ] || lack "no image $E2E_IMAGE (Debian: apt-get install buildah debootstrap)"

missing=()
for program in kubelet kube-apiserver kube-controller-manager kube-scheduler kubectl nfd-worker \
  nfd-master etcd containerd containerd-shim-runc-v2 ctr runc busybox ip iptables unshare setpriv; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[ -x /usr/lib/cni/bridge ] || missing+=(/usr/lib/cni/bridge)
if [ ${#missing[@]} -gt 0 ]; then
  skip "not here: ${missing[*]} (Debian: apt-get install etcd-server containerd runc" \
    "busybox-static containernetworking-plugins iptables iproute2; the others are built with Go)"
fi

exec 8</var/lib # one run at a time has the machine's cgroups
flock --nonblock 8 || { echo "e2e: waiting for another run on this machine" && flock 8; }
export XELINK_E2E=1 E2E_DATA=$cache
[ -z "${E2E_BIN:-}" ] || E2E_DATA=$bin
scratch=$(mktemp -d /tmp/xelink-e2e.XXXXXX)
chmod 0711 "$scratch" # NFD's worker, which is nobody, reads its kubeconfig there
trap 'rm -rf --one-file-system "$scratch"' EXIT
mkdir "$scratch/probe"
why=$(E2E_WORK=$scratch/probe "${own_namespaces[@]}" tools/e2e-node.sh probe 2>&1) ||
  skip "this machine does not give root ${why:-namespaces} (is it a container without privileges?)"

# containerd puts its containers below k8s.io, at the root of each hierarchy
cgroups() { find /sys/fs/cgroup -type d -path '*/k8s.io*' 2>/dev/null | sort; }

# Where the programs keep what they make; not on this machine (tools/apart.sh).
homes=(/etc/{cdi,cni,kubernetes} /opt/{cni,containerd} /run/{cdi,containerd,e2e-networks,kubelet,netns}
  /run/xtables.lock /usr/libexec/kubernetes /var/lib/{cni,containerd,containers,etcd,kubelet}
  /var/lib/xelink-demo /var/log/{containers,pods} "${HOME:-/root}/.kube")

# traces: what a run could leave on this machine, a line for each; others may work here meanwhile
traces() {
  local ours
  ours=" ($scratch|/run/(layers|machine)|$(IFS='|' && echo "${homes[*]}"))"
  cgroups | sed 's/^/cgroup /' || true
  awk '{ print "mount", $5 }' /proc/self/mountinfo | grep -E "$ours" || true
  awk 'NF > 7 { print "socket", $8 }' /proc/net/unix | grep -E "$ours" || true
  ls /sys/class/net | sed 's/^/network interface /'
  { grep -s . /proc/sys/vm/* /proc/sys/kernel/* /proc/sys/kernel/keys/* || true; } |
    grep -Ev 'ns_last_pid|perf_event' | sed 's/^/kernel setting /'
  { find "$scratch" "${homes[@]}" -maxdepth 1 2>/dev/null || true; } | sed 's/^/file /'
}

# processes NAMESPACES: those that still live in a namespace of a node
processes() {
  find /proc/[0-9]*/ns -type l -printf '%h %l\n' 2>/dev/null | grep -Ff "$1" |
    sed 's|^/proc/\([0-9]*\).*|process \1|' | sort -u || true
}

nodes=()
before=$(mktemp)
after=$(mktemp)

# cleanup: take everything away, and tell what would not go; fails when there is something
cleanup() {
  trap - EXIT
  local each try left=
  # Interrupted: a node ends with the process that made its namespaces.
  for each in "${nodes[@]}"; do
    pkill -KILL -P "$each" || true
    wait "$each" || true
  done
  cat "$scratch"/*/namespaces >"$after" 2>/dev/null || true
  # The kernel may take a moment to end processes, and to let go of a cgroup, and many on a busy
  # machine; the deepest goes first, what was there before stays.
  for try in {1..600}; do
    left=$([ ! -s "$after" ] || processes "$after")
    cgroups | comm -13 <(sed -n 's/^cgroup //p' "$before") - | sort -r | xargs -r rmdir 2>/dev/null &&
      [ -z "$left" ] && break
    sleep 0.2
  done
  rm -rf --one-file-system "$scratch"
  traces | sort >"$after"
  left+=${left:+$'\n'}$(comm -13 "$before" "$after")
  left=${left%$'\n'}
  rm -f "$before" "$after"
  [ -z "$left" ] || sed 's/^/e2e: left behind: /' <<<"$left" >&2
  [ -z "$left" ]
}
traces | grep -v "$scratch" | sort >"$before"
trap cleanup EXIT
kept=${E2E_LOGS:-$cache/logs}
rm -rf "$kept"

# node NAME PYTEST-ARGUMENTS...: the tests on one node; its logs are kept when one fails
node() {
  local name=$1 status=0
  shift
  mkdir -m 0711 "$scratch/$name"
  E2E_WORK=$scratch/$name "${own_namespaces[@]}" tools/apart.sh "$scratch/$name" \
    tools/e2e-node.sh tell "$@" || status=$?
  if [ "$status" != 0 ]; then
    mkdir -p "$kept/$name"
    cp -r "$scratch/$name/logs/." "$kept/$name/" 2>/dev/null || true
    cp -r "$scratch/$name/host/var/log/pods" "$kept/$name/" 2>/dev/null || true
    echo "e2e: logs of this node: $kept/$name" >&2
  fi
  return "$status"
}

status=0
if [ $# -gt 0 ]; then
  # Not in the foreground: who interrupts us is not kept waiting for it, and it is ended.
  node one tests/e2e "$@" <&0 &
  nodes=($!)
  wait "${nodes[0]}" || status=$?
  nodes=()
else
  echo "e2e: three nodes at once, some minutes"
  tell() {
    node "$@" >"$scratch/$1.out" 2>&1 &
    nodes+=($!)
  }
  tell one tests/e2e/test_nfd.py
  tell two tests/e2e/test_pods.py tests/e2e/test_deployment.py
  tell three tests/e2e/test_restarts.py tests/e2e/test_rollout.py
  for each in "${nodes[@]}"; do
    wait "$each" || status=1
  done
  nodes=()
  [ "$status" = 0 ] || cat "$scratch"/*.out
fi
versions=$(cat "$scratch"/*/versions 2>/dev/null | sort -u; cat "$scratch"/{one,two,three}/tests 2>/dev/null) || true
cleanup || status=1
printf 'e2e: %d:%02d from start to end, on %d processors with a load of %s\n%s\n' $((SECONDS / 60)) \
  $((SECONDS % 60)) "$(nproc)" "$(cut -d ' ' -f 1 /proc/loadavg)" "$versions" | tee "$cache/summary.txt"
if [ "$status" != 0 ]; then
  grep -E '^(failed|error) ' "$cache/summary.txt" >&2 || true
  echo "e2e: FAILED" >&2
fi
exit "$status"
