#!/usr/bin/env bash
# Fetches a Debian kernel of some architecture, and busybox for it, as files:
# nothing is installed and no architecture is added to this machine.
#
#   kernel.sh ARCH DIR     ARCH as Debian calls it: amd64, arm64
#
# Leaves DIR/vmlinuz, DIR/config, DIR/modules (kernel modules), DIR/busybox and for
# amd64 DIR/vmlinux, which the emulated machine need not unpack first.
# What is there already is not fetched again. TESTKERNEL_SUITE (trixie) and
# TESTKERNEL_FLAVOUR (cloud-ARCH, or e.g. arm64-16k) choose another kernel.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

arch=${1:?ARCH} dir=${2:?DIR}
flavour=${TESTKERNEL_FLAVOUR:-cloud-$arch}

[ ! -e "$dir/complete" ] || exit 0
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
# shellcheck source-path=SCRIPTDIR source=debian.sh
. "$here/debian.sh"

# number FILE OFFSET SIZE: a little-endian number in a file
number() { od -An -j "$2" -N "$3" -t "u$3" "$1" | tr -d ' '; }

# payload BZIMAGE: the ELF file that a bzImage carries. Where it lies, the boot
# protocol tells (Documentation/arch/x86/boot.rst: setup_sects, payload_offset,
# payload_length; the last four bytes of the payload are its size unpacked).
payload() {
  local sectors offset length start program
  sectors=$(number "$1" 497 1) offset=$(number "$1" 584 4) length=$(number "$1" 588 4)
  start=$(((sectors + 1) * 512 + offset))
  case $(od -An -j "$start" -N 4 -t x1 "$1" | tr -d ' ') in
    fd377a58) program=xz ;;
    28b52ffd) program=zstd ;;
    02214c18) program=lz4 ;;
    1f8b*) program=gzip ;;
    *) echo "kernel.sh: $1 is compressed in a way that is not known here" >&2; exit 1 ;;
  esac
  dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) status=none | "$program" -dc
}

index "$arch"
# the newest image of the flavour: its name carries the kernel's version
image=$(awk '/^Package: linux-image-[0-9]/ {print $2}' "$tmp/Packages" |
  grep -E "^linux-image-[0-9.]+(-[0-9]+|\+[a-z0-9]+)-$flavour\$" | sort -V | tail -1)
[ -n "$image" ] || { echo "kernel.sh: $suite has no kernel of flavour $flavour for $arch" >&2; exit 1; }
unpack "$image"
unpack busybox-static
cp "$tmp/$image"/boot/vmlinuz-* "$dir/vmlinuz"
cp "$tmp/$image"/boot/config-* "$dir/config"
[ "$arch" != amd64 ] || payload "$dir/vmlinuz" >"$dir/vmlinux"
rm -rf "$dir/modules"
mv "$(find "$tmp/$image" -type d -path '*lib/modules' | head -1)" "$dir/modules"
cp "$(find "$tmp/busybox-static" -type f -path '*bin/busybox' | head -1)" "$dir/busybox"
echo "${image#linux-image-}" >"$dir/complete"
