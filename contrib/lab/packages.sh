#!/usr/bin/env bash
# Checks that the programs and headers of a task are on this machine and, as
# root on a Debian-like system, installs the packages that are missing.
#
#   packages.sh [--check] lab|test|suites|bench|peers|lint|vm|faultkernel|arm64...
#
# --check only names what is missing (exit status 1) and installs nothing.
set -euo pipefail

missing=()

# command_from COMMAND PACKAGE: PACKAGE is missing unless COMMAND is on the PATH.
command_from() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }

# The image holds one file, so a busybox that needs libc.so is of no use.
static_busybox() {
  local b
  b=$(command -v busybox) && ! ldd "$b" >/dev/null 2>&1
}

c_compiler() {
  command_from gcc gcc
  # gcc alone brings no headers when recommended packages are left out
  [ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
}

# Go fetches modules over TLS.
certificates() {
  [ -n "${SSL_CERT_FILE:-}${SSL_CERT_DIR:-}" ] || [ -e /etc/ssl/certs/ca-certificates.crt ] ||
    [ -e /etc/pki/tls/certs/ca-bundle.crt ] || missing+=(ca-certificates)
}

check() {
  certificates
  case $1 in
    lab) # runc is built with cgo and libseccomp; busybox is the image
      c_compiler
      command_from pkg-config pkg-config
      pkg-config --exists libseccomp 2>/dev/null || missing+=(libseccomp-dev)
      static_busybox || missing+=(busybox-static)
      command_from jq jq
      command_from ip iproute2
      command_from nsenter util-linux
      ;;
    test) c_compiler ;; # -race and the C programs that tests graft onto
    suites) # other people's tests, of the layer and of the unit; without them those are skipped
      command_from stress-ng stress-ng
      command_from fio fio
      command_from systemd-analyze systemd
      ;;
    bench)
      c_compiler
      command_from fio fio
      ;;
    peers) # what make bench compares with; passthrough_hp is built from libfuse's example
      command_from bindfs bindfs
      command_from g++ g++
      command_from pkg-config pkg-config
      pkg-config --exists fuse3 2>/dev/null || missing+=(libfuse3-dev)
      ;;
    lint) command_from shellcheck shellcheck ;;
    vm) # an emulated machine; Debian's kernels come as packages that are unpacked
      command_from qemu-system-x86_64 qemu-system-x86
      static_busybox || missing+=(busybox-static)
      command_from cpio cpio
      command_from mkfs.ext4 e2fsprogs
      command_from curl curl
      command_from xz xz-utils
      command_from zstd zstd
      command_from lz4 lz4
      [ -x /usr/sbin/criu ] || command_from criu criu # checkpoints are made in there
      ;;
    faultkernel) # to build the kernel with error injection
      c_compiler
      command_from make make
      command_from flex flex
      command_from bison bison
      command_from bc bc
      command_from pahole dwarves
      command_from perl perl
      command_from curl curl
      command_from xz xz-utils
      command_from lz4 lz4
      [ -e /usr/include/gelf.h ] || missing+=(libelf-dev)
      [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
      ;;
    arm64) # an emulated machine, and the C programs that run in it
      command_from qemu-system-aarch64 qemu-system-arm
      command_from aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
      [ -e /usr/aarch64-linux-gnu/include/stdlib.h ] || missing+=(libc6-dev-arm64-cross)
      command_from cpio cpio
      command_from curl curl
      command_from xz xz-utils
      ;;
    *)
      echo "packages.sh: unknown task '$1': one of lab, test, suites, bench, peers, lint, vm, faultkernel, arm64" >&2
      exit 2
      ;;
  esac
}

only_check=
[ "${1:-}" != --check ] || { only_check=1; shift; }
[ $# -gt 0 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
for task in "$@"; do check "$task"; done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ -n "$only_check" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing packages (Debian names): ${missing[*]}; install them with: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}
# The package lists may be absent or old on a fresh machine: fetched only when the first attempt fails.
install 2>/dev/null || { apt-get update -qq </dev/null && install; } || {
  echo "apt-get could not install ${missing[*]}: see the lines above" >&2
  exit 1
}
