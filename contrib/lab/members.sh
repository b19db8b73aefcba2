# shellcheck shell=bash
# Sourced by lab.sh: which processes and cgroups belong to the lab, and how they end.

# A process is in the lab if its mount namespace has the lab's own tmpfs on
# /run, whose source no other mount on the machine is named like. PIDs and
# namespace numbers are used again by the kernel and prove nothing.

# in_lab PID
in_lab() { grep -qs " /run .* - tmpfs $LABID " "/proc/$1/mountinfo"; }

# containerd_pid: prints the PID of the lab's containerd; fails when it does not run.
containerd_pid() {
  local pid
  pid=$(cat "$PIDFILE" 2>/dev/null) && [ -n "$pid" ] || return 1
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = containerd ] && in_lab "$pid" && ! gone "$pid" && echo "$pid"
}

# members: prints the PIDs in the lab: containerd, shims, plugin, keepers, shells.
members() {
  # grep fails on processes that end meanwhile, and when there is no match
  { grep -ls " /run .* - tmpfs $LABID " /proc/[0-9]*/mountinfo || true; } | cut -d/ -f3
}

# children PID...: prints the direct children of each PID.
children() {
  local p f
  for p in "$@"; do
    for f in /proc/"$p"/task/*/children; do
      { tr ' ' '\n' <"$f"; } 2>/dev/null | grep . || true
    done
  done
}

# end_process PID SECONDS: SIGTERM, then SIGKILL when it still runs after SECONDS.
# It signals nothing but a process in the lab, or the child of one (a container's first process).
end_process() {
  local i parent
  parent=$(sed -n 's/^PPid:\t//p' "/proc/$1/status" 2>/dev/null) || return 0 # it ended
  in_lab "$1" || in_lab "$parent" || die "process $1 is not of the lab: it is left alone"
  kill "$1" 2>/dev/null || return 0
  for i in $(seq $(($2 * 10))); do
    gone "$1" && return
    [ "$i" != $(($2 * 10)) ] || echo "lab: process $1 ($(cat "/proc/$1/comm" 2>/dev/null)) does not end on SIGTERM: killing it" >&2
    sleep 0.1
  done
  kill -9 "$1" 2>/dev/null || true
  for i in $(seq 50); do
    gone "$1" && return
    sleep 0.1
  done
  die "process $1 does not end; its state: $(grep -s State "/proc/$1/status")"
}

# gone PID: it ended (a zombie that its parent has not collected yet counts).
gone() { ! grep -qs 'State:.[^ZX]' "/proc/$1/status"; }

# end_members: ends by PID what is still in the lab's mount namespace, with its children.
end_members() {
  local pids kids p
  for _ in $(seq 20); do # shims end by themselves a moment after their container
    [ -n "$(members)" ] || return 0
    sleep 0.1
  done
  mapfile -t pids < <(members)
  mapfile -t kids < <(children "${pids[@]}")
  for p in "${kids[@]}" "${pids[@]}"; do # containers first: their shims then end by themselves
    ! gone "$p" || continue
    echo "lab: ending left-over process $p ($(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | cut -c1-80))" >&2
    end_process "$p" 5
  done
  [ -z "$(members)" ] || die "processes are left in the lab: $(members | tr '\n' ' ')"
}

# remove_grafts: takes every fault layer off while all their processes are there to do it in order.
remove_grafts() {
  [ -x "$LAB/bin/faultgraft" ] && [ -d "/proc/$(containerd_pid)/root/run/faultgraft" ] || return 0
  inside timeout 30 faultgraft recover --all >"$LAB/log/recover.log" 2>&1 ||
    echo "lab: faultgraft recover --all failed: $(tail -n 1 "$LAB/log/recover.log")" >&2
}

# remove_containers: tasks, containers and pods of every containerd namespace of the lab.
remove_containers() {
  local ns c
  for ns in $(inside ctr namespaces ls -q); do
    for c in $(inside ctr -n "$ns" containers ls -q); do
      if [ "$ns" != k8s.io ] && inside timeout 30 nerdctl -n "$ns" rm -f "$c" >/dev/null 2>&1; then continue; fi
      inside timeout 30 ctr -n "$ns" tasks rm -f "$c" >/dev/null 2>&1 || true # it may have no task
      inside timeout 30 ctr -n "$ns" containers rm "$c" >/dev/null 2>&1 || echo "lab: cannot remove container $c of namespace $ns" >&2
    done
  done
}

# cgroup_dirs: the folders that runc makes for the lab's containers, in every hierarchy of the machine.
cgroup_dirs() {
  local d
  for d in /sys/fs/cgroup/{,*/}{"$NAMESPACE",k8s.io}; do [ ! -d "$d" ] || echo "$d"; done
}

# remember_cgroups: a k8s.io that was there before the lab is not the lab's to remove.
remember_cgroups() { cgroup_dirs | grep '/k8s.io$' >"$LAB/run/cgroups.before" || true; }

# remove_cgroups: rmdir refuses a cgroup that holds a process, so only empty ones go.
remove_cgroups() {
  local d
  for d in $(cgroup_dirs); do
    if ! grep -qsxF "$d" "$LAB/run/cgroups.before"; then
      find "$d" -depth -type d -exec rmdir {} + 2>/dev/null || true
    fi
  done
}
