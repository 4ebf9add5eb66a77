#!/usr/bin/env bash
# One node of the end-to-end tests, from inside: tools/e2e-run.sh calls it in namespaces of its own.
#
#   tools/e2e-node.sh probe                    whether containers can run here; what is missing else
#   tools/e2e-node.sh tell [PYTEST ARGUMENTS]  the tests
#
# E2E_WORK is the node's directory on a real disk.
set -euo pipefail
cd "$(dirname "$0")/.."

# Not shared by namespaces, and set by every kubelet for the whole machine.
tunables=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

# give WHAT COMMAND...: end with the name of what this machine does not give
give() {
  local what=$1
  shift
  "$@" >/dev/null 2>&1 || {
    echo "$what"
    exit 1
  }
}

probe() {
  local tree=$PWD
  cd "$E2E_WORK"
  mkdir -p lower upper work merged
  give "mounts of its own" mount --make-rprivate /
  give "file systems in memory" mount -t tmpfs probe lower
  give "overlay file systems" mount -t overlay probe -o lowerdir=lower,upperdir=upper,workdir=work merged
  give "device nodes in $E2E_WORK" sh -c 'mknod null c 1 3 && : >null'
  give "network interfaces" ip link add node0 type veth peer name beyond0
  # Version 1 mounts a file system for each controller, version 2 one for all.
  local each groups
  mapfile -t groups < <(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts)
  give "cgroups" test ${#groups[@]} -gt 0
  for each in "${groups[@]}"; do
    give "cgroups in $each" sh -c 'mkdir "$0" && rmdir "$0"' "$each/$(basename "$(dirname "$PWD")")"
  done
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    give "the controllers of cgroup v2" sh -c 'echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control'
  fi
  cd "$tree"
  give "layers above its directories" tools/apart.sh "$E2E_WORK" true
}

tell() {
  local each
  for each in "${tunables[@]}"; do
    mkdir -p "$E2E_WORK/tunables/$(dirname "$each")"
    cat "/proc/sys/$each" >"$E2E_WORK/tunables/$each"
    mount --bind "$E2E_WORK/tunables/$each" "/proc/sys/$each"
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
  rm -f /etc/resolv.conf
  echo "nameserver 127.0.0.1" >/etc/resolv.conf
  readlink /proc/self/ns/{ipc,mnt,net,pid,uts} >"$E2E_WORK/namespaces"
  # Not exec: as the first process of its namespace, this shell reaps what the others leave.
  local status=0
  # A test waits for many things in turn, each with a limit of its own.
  .venv/bin/python -m pytest -p no:cacheprovider -q -o faulthandler_timeout=1800 "$@" || status=$?
  return $status
}

"$@"
