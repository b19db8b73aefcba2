# shellcheck shell=bash disable=SC2034
# Pinned versions of what the lab builds from published Go modules. A changed
# line rebuilds that one program at the next `lab.sh build`.
CONTAINERD=v2.4.2 # containerd, containerd-shim-runc-v2, ctr
RUNC=v1.5.2
NERDCTL=v2.3.5
