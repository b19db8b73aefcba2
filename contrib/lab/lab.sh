#!/usr/bin/env bash
# A private containerd with runc and nerdctl, NRI on and faultgraft registered
# as its plugin 10-faultgraft, in a mount and network namespace of its own.
#
#   lab.sh build             build the programs from published Go modules (once; minutes)
#   lab.sh image             make the images lab.local/busybox:1 and lab.local/pause:1
#   lab.sh databases         make the images lab.local/postgres:1 and lab.local/redis:1, and load them if it is up
#   lab.sh up                build what is missing and start containerd
#   lab.sh load [TAR...]     import images (default: those of `image`) for nerdctl, ctr and CRI
#   lab.sh status            is it up, and what runs in it; exit status 1 when down
#   lab.sh nerdctl ARGS...   nerdctl inside the lab; the same with ctr
#   lab.sh ns CMD ARGS...    any command inside the lab's namespaces: lab.sh ns faultgraft ps
#   lab.sh restart           stop containerd and start it again under the running containers
#   lab.sh down              remove grafts, containers and cgroups, stop containerd
#   lab.sh purge             down, and remove the lab's folder
#
# Everything on disk is under $FAULTGRAFT_LAB (default ~/.cache/faultgraft/lab).
# Inside the lab /run is a tmpfs of its own, so containerd, NRI and faultgraft
# use their default paths there and collide with nothing on the machine.
#
# FAULTGRAFT_BIN       the binary that becomes the plugin (default: bin/faultgraft of this tree)
# FAULTGRAFT_LAB_WRAPPER  1: every container goes through `faultgraft runc`; else only with --runtime $FAULTGRAFT_LAB/wrapper/runc
# FAULTGRAFT_LAB_CONFIG  lines for faultgraft's configuration, beside those that opt the lab's namespaces in
# FAULTGRAFT_LAB_CGROUP  host: the machine's cgroups (default); v2: a cgroup2 view on /sys/fs/cgroup
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$HERE/../.." && pwd)
LAB=${FAULTGRAFT_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/lab}
case $LAB in /*) ;; *) LAB=$PWD/$LAB ;; esac
NAMESPACE=faultgraft-lab # containerd namespace of nerdctl and ctr, and cgroup parent of everything
BUSYBOX_IMAGE=lab.local/busybox:1
PAUSE_IMAGE=lab.local/pause:1
PIDFILE=$LAB/run/containerd.pid
# The source of the tmpfs on the lab's /run: who sees this mount is in the lab (see members.sh).
LABID=faultgraft-lab-$(printf %s "$LAB" | sha256sum | cut -c1-12)
BINARY=${FAULTGRAFT_BIN:-$TREE/bin/faultgraft}

die() {
  echo "lab: $*" >&2
  exit 1
}
# shellcheck source-path=SCRIPTDIR source=versions.sh
. "$HERE/versions.sh"
# shellcheck source-path=SCRIPTDIR source=build.sh
. "$HERE/build.sh"
# shellcheck source-path=SCRIPTDIR source=databases.sh
. "$HERE/databases.sh"
# shellcheck source-path=SCRIPTDIR source=members.sh
. "$HERE/members.sh"
# shellcheck source-path=SCRIPTDIR source=config.sh
. "$HERE/config.sh"

root_only() { [ "$(id -u)" = 0 ] || die "'$1' needs root: it makes namespaces, mounts and cgroups"; }

# lock: one build, up or down at a time; the lock ends with this script.
lock() {
  mkdir -p "$LAB"
  exec {lockfd}>"$LAB/lock"
  flock -n "$lockfd" || {
    echo "lab: waiting for another lab.sh on $LAB" >&2
    flock -w 1800 "$lockfd" || die "another lab.sh has held $LAB/lock for 30 minutes"
  }
}

# enter COMMAND...: replaces this script by COMMAND in the lab's namespaces, so that killing it kills the command.
enter() {
  local pid
  pid=$(containerd_pid) || die "the lab is down; start it with: $0 up"
  exec nsenter -m -n -t "$pid" -- env -C "$PWD" "PATH=$LAB/bin:$PATH" "NERDCTL_TOML=$LAB/etc/nerdctl.toml" \
    CONTAINERD_ADDRESS=/run/containerd/containerd.sock CONTAINERD_NAMESPACE="$NAMESPACE" \
    "FAULTGRAFT_CONFIG=$LAB/etc/faultgraft.yaml" \
    CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 "$@"
}
inside() { (enter "$@"); }

# launch [MNT NET]: starts containerd in the namespaces that these two files
# name, or in new ones.
launch() {
  local where=(unshare -m -n --propagation private) fresh=1 i
  [ $# -eq 0 ] || { where=(nsenter "--mount=$1" "--net=$2" --); fresh=; }
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid "${where[@]}" env "FRESH=$fresh" "LAB=$LAB" "LABID=$LABID" "OUTSIDE=$(readlink /proc/self/ns/mnt)" \
    "CGROUP=${FAULTGRAFT_LAB_CGROUP:-host}" "PATH=$LAB/bin:$PATH" \
    bash -euc '
      if [ "$(readlink /proc/self/ns/mnt)" = "$OUTSIDE" ]; then
        echo "not in a mount namespace of its own: containerd is not started" >&2
        exit 1
      fi
      if [ -n "$FRESH" ]; then # -n: mount(8) leaves no /run/mount on the machine
        [ "$CGROUP" != v2 ] || mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
        mount -n -t tmpfs -o mode=755 "$LABID" /run
        ip link set lo up
      fi
      echo $$ >"$LAB/run/containerd.pid"
      cd /
      for fd in /proc/self/fd/*; do # the lock and namespace descriptors of lab.sh are not for containerd
        [ "${fd##*/}" -le 2 ] || eval "exec ${fd##*/}>&-"
      done
      exec containerd -c "$LAB/etc/containerd.toml" -l "${FAULTGRAFT_LAB_LOG:-info}"
    ' >>"$LAB/log/containerd.log" 2>&1 </dev/null &
  for i in $(seq 150); do
    sleep 0.1
    if containerd_pid >/dev/null && inside ctr --connect-timeout 2s plugins ls 2>/dev/null | grep -q 'grpc.v1 *cri .*ok'; then
      await_plugin
      return
    fi
    [ "$i" -lt 20 ] || ! gone "$!" || break
  done
  tail -n 20 "$LAB/log/containerd.log" >&2
  die "containerd did not come up: the whole log is $LAB/log/containerd.log"
}

# await_plugin: the plugin that containerd launched listens, so that what is started next is seen by it.
await_plugin() {
  local pid i
  [ -e "$LAB/nri/plugins/10-faultgraft" ] || return 0
  pid=$(containerd_pid)
  for i in $(seq 60); do
    [ ! -S "/proc/$pid/root/run/faultgraft/daemon.sock" ] || return 0
    sleep 0.1
  done
  echo "lab: the plugin 10-faultgraft does not listen after $((i / 10)) s: see $LAB/log/faultgraft.log and $LAB/log/containerd.log" >&2
}

up() {
  root_only up
  build
  image
  mkdir -p "$LAB"/{bin,etc,log,run/podlogs,root,opt,cdi,nerdctl,cni,shimpath,nri/plugins,nri/conf.d}
  local changed=
  install_plugin && changed=1
  if containerd_pid >/dev/null; then
    [ -z "$changed" ] || restart
    echo "lab: already up, containerd is pid $(containerd_pid)"
    return
  fi
  write_config
  : >"$LAB/log/containerd.log"
  local left
  left=$(members | head -n 1)
  if [ -n "$left" ]; then # a containerd that was killed comes back to its containers
    launch "/proc/$left/ns/mnt" "/proc/$left/ns/net"
  else
    remember_cgroups
    launch
  fi
  load_default
  echo "lab: up, containerd is pid $(containerd_pid)"
}

# restart keeps the namespaces by descriptors while no containerd is in them.
restart() {
  root_only restart
  local pid mnt net
  pid=$(containerd_pid) || die "the lab is down; start it with: $0 up"
  write_config
  exec {mnt}<"/proc/$pid/ns/mnt" {net}<"/proc/$pid/ns/net"
  end_process "$pid" 10
  launch "/proc/$$/fd/$mnt" "/proc/$$/fd/$net"
  exec {mnt}<&- {net}<&-
  echo "lab: restarted, containerd is pid $(containerd_pid)"
}

load() { # TAR...
  local ns tar
  for tar in "$@"; do
    for ns in "$NAMESPACE" k8s.io; do
      inside ctr -n "$ns" images import --local "$tar" >"$LAB/log/load.log" 2>&1 ||
        die "cannot import $tar into namespace $ns: $(tail -n 1 "$LAB/log/load.log")"
    done
  done
}

# load_new NAME...: imports those of the images that are not in the lab as they are now.
load_new() {
  local name stamp
  for name; do
    stamp=$(cat "$LAB/stamps/$name")
    [ "$(cat "$LAB/root/.loaded-$name" 2>/dev/null)" != "$stamp" ] || continue
    load "$LAB/img/$name.tar"
    echo "$stamp" >"$LAB/root/.loaded-$name"
  done
}
load_default() { load_new busybox pause; }

databases() {
  database_images
  ! containerd_pid >/dev/null || load_new postgres redis
}

status() {
  local pid ns
  pid=$(containerd_pid) || {
    echo "lab: down ($LAB)"
    [ -z "$(members)" ] || echo "lab: left over: $(members | tr '\n' ' ')"
    return 1
  }
  echo "lab: up, containerd is pid $pid, folder $LAB"
  for ns in "$NAMESPACE" k8s.io; do
    echo "containers of namespace $ns:"
    inside ctr -n "$ns" tasks ls
  done
}

down() {
  root_only down
  local pid
  if pid=$(containerd_pid); then
    remove_grafts
    remove_containers
    end_process "$pid" 10
  fi
  end_members
  rm -f "$PIDFILE"
  remove_cgroups
  echo "lab: down"
}

# purge removes the folders that the lab made, by name: FAULTGRAFT_LAB may be a folder with other things in it.
purge() {
  down
  local d
  for d in bin cdi cni debs etc img log nerdctl nri opt root run shimpath src stamps; do
    rm -rf --one-file-system "${LAB:?}/$d"
  done
  rm -f "$LAB"/{lock,test.lock,faultgraft.built}
  rmdir --ignore-fail-on-non-empty "$LAB"
}

case ${1:-} in
  up | down | restart | purge) ! in_lab $$ || die "run '$1' from outside the lab" ;;
esac
case ${1:-} in
  build | image | databases) lock; "$1" ;;
  up | down | restart | purge) lock; "$1" ;;
  load)
    lock
    shift
    if [ $# -gt 0 ]; then load "$@"; else rm -f "$LAB"/root/.loaded-*; load_default; fi
    ;;
  status) status ;;
  nerdctl | ctr) enter "$@" ;;
  ns) shift; enter "$@" ;;
  -h | --help | help) sed -n '2,26s/^# \{0,1\}//p' "$0" ;;
  *) sed -n '2,26s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
