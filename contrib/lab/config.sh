# shellcheck shell=bash
# Sourced by lab.sh: the configuration of the lab's containerd, nerdctl and plugin.

# snapshotter: overlayfs cannot stand on another overlayfs, as in a container.
snapshotter() { if [ "$(stat -f -c %T "$LAB")" = overlayfs ]; then echo native; else echo overlayfs; fi; }

# limits: can the containers' cgroups hold cpu, memory and pids limits? On v1
# and hybrid machines they can; on a cgroup2 without these controllers (a view
# of a hybrid machine, or an unprivileged container) every limit fails.
limits() {
  local c=/sys/fs/cgroup/cgroup.controllers name
  [ "${FAULTGRAFT_LAB_CGROUP:-host}" != v2 ] || [ -e "$c" ] || c=/sys/fs/cgroup/unified/cgroup.controllers
  [ -e "$c" ] || return 0
  for name in cpu memory pids; do grep -qw "$name" "$c" || return 1; done
}

# write_runc: $LAB/shimpath/runc is the runc of every client.
write_runc() {
  if limits; then
    ln -sfn ../bin/runc "$LAB/shimpath/runc"
    return
  fi
  # only here: every CRI sandbox and every `ctr run` sets cpu shares, which this machine's cgroup2 cannot hold
  rm -f "$LAB/shimpath/runc"
  cat >"$LAB/shimpath/runc" <<EOF
#!/usr/bin/env bash
# runc for a cgroup2 without cpu, memory and pids controllers: limits are taken out of config.json.
set -euo pipefail
args=("\$@") bundle=. create=
while [ \$# -gt 0 ]; do
  case \$1 in create | run) create=1 ;; --bundle | -b) bundle=\$2; shift ;; esac
  shift
done
if [ -n "\$create" ]; then
  jq -c 'del(.linux.resources | .memory, .cpu, .pids, .blockIO, .unified)' "\$bundle/config.json" >"\$bundle/config.lab"
  mv "\$bundle/config.lab" "\$bundle/config.json"
fi
exec "$LAB/bin/runc" "\${args[@]}"
EOF
  chmod +x "$LAB/shimpath/runc"
}

# write_wrapper: $LAB/wrapper/runc is faultgraft in front of that runc.
write_wrapper() {
  mkdir -p "$LAB/wrapper"
  ln -sfn ../bin/faultgraft "$LAB/wrapper/runc"
}

# shim_path: where the shim looks for its runc; FAULTGRAFT_LAB_WRAPPER=1 has it find the wrapper first.
shim_path() { echo "${FAULTGRAFT_LAB_WRAPPER:+$LAB/wrapper:}${FAULTGRAFT_LAB_SHIMPATH:-$LAB/shimpath}"; }

write_config() {
  write_runc
  write_wrapper
  cat >"$LAB/etc/containerd.toml" <<EOF
version = 3
root = '$LAB/root'
# state, sockets and NRI stay at their defaults below /run, which is the lab's own

[plugins.'io.containerd.internal.v1.opt']
  path = '$LAB/opt'

[plugins.'io.containerd.shim.v1.manager']
  env = ['PATH=$(shim_path):/usr/sbin:/usr/bin:/sbin:/bin'] # whose runc every client gets

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '$(snapshotter)'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '$PAUSE_IMAGE'

[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true # CRI asks for -998, which root without CAP_SYS_RESOURCE may not set
  cdi_spec_dirs = ['$LAB/cdi']
  # no CNI plugin is built: pods use the host network, which here is the lab's namespace
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$LAB/cni']
    conf_dir = '$LAB/cni'

[plugins.'io.containerd.nri.v1.nri']
  disable = false
  plugin_path = '$LAB/nri/plugins'
  plugin_config_path = '$LAB/nri/conf.d'
  plugin_registration_timeout = '5s'
  plugin_request_timeout = '2s'
${FAULTGRAFT_LAB_NRI:-}
EOF
  cat >"$LAB/etc/nerdctl.toml" <<EOF
namespace = '$NAMESPACE'
snapshotter = '$(snapshotter)'
data_root = '$LAB/nerdctl'
cni_path = '$LAB/cni'
cni_netconfpath = '$LAB/cni'
cgroup_manager = 'cgroupfs'
cdi_spec_dirs = ['$LAB/cdi']
EOF
  # containerd launches the plugin with stdout and stderr on /dev/null
  local labels
  labels="labels: {namespaces: [$NAMESPACE, default]}" # of nerdctl and ctr, and of pods
  printf '%s\nlog: {file: %s}\n%s' "$labels" "$LAB/log/faultgraft.log" "${FAULTGRAFT_LAB_CONFIG:-}" >"$LAB/nri/conf.d/10-faultgraft.conf"
  printf '%s\n%s' "$labels" "${FAULTGRAFT_LAB_CONFIG:-}" >"$LAB/etc/faultgraft.yaml" # of agents that are started by hand
}

# install_plugin: copies the binary into the lab; succeeds if that changed what containerd has to launch.
install_plugin() {
  if [ ! -x "$BINARY" ]; then
    echo "lab: no $BINARY, so NRI runs without faultgraft (make build)" >&2
    [ -e "$LAB/nri/plugins/10-faultgraft" ] || return 1
    rm -f "$LAB/nri/plugins/10-faultgraft" "$LAB/bin/faultgraft"
    return 0
  fi
  ! cmp -s "$BINARY" "$LAB/nri/plugins/10-faultgraft" || return 1
  # through a new inode: a running binary cannot be written to
  rm -f "$LAB/bin/faultgraft" "$LAB/nri/plugins/10-faultgraft"
  install -m 755 "$BINARY" "$LAB/bin/faultgraft"
  install -m 755 "$BINARY" "$LAB/nri/plugins/10-faultgraft"
}
