#!/usr/bin/env bash
# tests/e2e on nodes of real programs, in namespaces of their own (mounts, processes, network): what
# the programs start, mount or listen on is gone with them, however the run ends. What a namespace
# does not hold (cgroups, mount points, the temporary directory) is removed here at the end.
#
#   tools/e2e-run.sh [PYTEST ARGUMENTS]    without any, the stories are told on two nodes at once
#
# E2E_BIN=DIR        ready-made programs instead of built ones (and NFD's deployment/base as DIR/nfd)
# E2E_IMAGE=ARCHIVE  a ready-made image instead of a built one
# E2E_LOGS=DIR       where the logs of a run that failed are kept (.cache/e2e/logs)
# E2E_REQUIRED=1     what is missing is an error, not a reason to skip
set -euo pipefail
cd "$(dirname "$0")/.."

cache=$PWD/.cache/e2e
python=$PWD/.venv/bin/python
mounted=(/var/lib/kubelet /var/lib/xelink-demo /etc/kubernetes /var/log)

inside() {
  # Nothing mounted here is seen outside; among ourselves it is, as kubelet wants it.
  mount --make-rprivate /
  mount --make-rshared /
  mount -t tmpfs -o mode=0755 run /run
  for directory in "${mounted[@]}"; do
    mkdir -p "$E2E_WORK/host$directory"
    mount --bind "$E2E_WORK/host$directory" "$directory"
  done
  ip link set lo up
  # kubelet takes its address from this interface; nobody is at the other end.
  ip link add node0 type veth peer name beyond0
  ip address add 192.0.2.1/24 dev node0
  ip link set node0 up
  ip link set beyond0 up
  ip route add default via 192.0.2.2 dev node0
  hostname xelink-e2e
  # Names are asked of nobody, and nobody is waited for.
  echo "nameserver 127.0.0.1" >"$E2E_WORK/resolv.conf"
  mount --bind "$E2E_WORK/resolv.conf" /etc/resolv.conf
  # Not exec: as the first process of its namespace, this shell reaps what the others leave.
  local status=0
  "$python" -m pytest -p no:cacheprovider -q "$@" || status=$?
  return $status
}

skip() {
  echo "e2e: skipped: $*"
  [ -z "${E2E_REQUIRED:-}" ] || exit 1
  exit 0
}

refuse() {
  echo "e2e: refused: $*" >&2
  exit 1
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
  exit
fi

[ "$(id -u)" = 0 ] || skip "it takes root, for namespaces, containers and device nodes"
for process in /proc/[0-9]*/comm; do
  if [ "$(cat "$process" 2>/dev/null)" = kubelet ]; then
    refuse "a kubelet runs here (process $(basename "$(dirname "$process")"))"
  fi
done
if [ -n "$(ls -A /var/lib/kubelet 2>/dev/null)" ]; then
  refuse "/var/lib/kubelet holds files of a kubelet; run this on a machine that is no node"
fi
mkdir -p "$cache"
exec 9>"$cache/lock"
flock --nonblock 9 || refuse "another run holds $cache/lock"

bin=$(realpath -m "${E2E_BIN:-$cache/bin}")
export PATH=$bin:$PATH:/usr/sbin:/sbin
[ -n "${E2E_IMAGE:-}" ] || tools/e2e-image.sh &
[ -n "${E2E_BIN:-}" ] || tools/e2e-build.sh
wait $!
if ! ls .cache/tools/crds/*.yaml >/dev/null 2>&1; then
  tools/deployment-tools.sh || true # the stories that need them skip, and say so
fi

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
unshare --mount --pid --net --uts --ipc --fork true 2>/dev/null ||
  skip "this machine gives root no namespaces (is it a container without privileges?)"

export XELINK_E2E=1 E2E_DATA=$cache
[ -z "${E2E_BIN:-}" ] || E2E_DATA=$bin
[ -n "${E2E_IMAGE:-}" ] || export E2E_IMAGE=$cache/xelink.tar
scratch=$(mktemp -d /tmp/xelink-e2e.XXXXXX)
chmod 0711 "$scratch" # NFD's worker, which is nobody, reads its kubeconfig there
made=()

# containerd puts its containers at the root of each hierarchy, below k8s.io
cgroups() { find /sys/fs/cgroup -type d -path '*/k8s.io*' 2>/dev/null | sort; }

nodes=()

cleanup() {
  # Interrupted: a node ends with the process that made its namespaces.
  for each in "${nodes[@]}"; do
    pkill -KILL -P "$each" || true
    wait "$each" || true
  done
  # The deepest first; what was there before, or is in use, stays.
  comm -13 "$scratch/cgroups" <(cgroups) | sort -r | while read -r cgroup; do
    rmdir "$cgroup" 2>/dev/null || echo "e2e: left behind: $cgroup" >&2
  done
  rm -rf --one-file-system "$scratch"
  for ((i = ${#made[@]} - 1; i >= 0; i--)); do
    rmdir "${made[i]}" 2>/dev/null || true
  done
}
cgroups >"$scratch/cgroups"
trap cleanup EXIT
for directory in "${mounted[@]}"; do
  if [ ! -d "$directory" ]; then
    mkdir -p "$directory"
    made+=("$directory")
  fi
done
kept=${E2E_LOGS:-$cache/logs}
rm -rf "$kept"

# node NAME PYTEST-ARGUMENTS...: the stories on one node; its logs are kept when one fails
node() {
  local name=$1 status=0
  shift
  mkdir -m 0711 "$scratch/$name"
  E2E_WORK=$scratch/$name unshare --mount --pid --net --uts --ipc --fork --kill-child --mount-proc \
    "$0" --inside "$@" || status=$?
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
  node one tests/e2e "$@" || status=$?
else
  echo "e2e: two nodes at once, some minutes; each tells its stories in the end"
  node one tests/e2e/test_nfd.py tests/e2e/test_deployment.py >"$scratch/one.out" 2>&1 &
  nodes=($!)
  node two tests/e2e/test_pods.py tests/e2e/test_restarts.py >"$scratch/two.out" 2>&1 &
  nodes+=($!)
  for each in "${nodes[@]}"; do
    wait "$each" || status=$?
  done
  nodes=()
  cat "$scratch/one.out" "$scratch/two.out"
fi
exit "$status"
