#!/usr/bin/env bash
# Fetches a Debian kernel of another architecture, and busybox for it, as files:
# nothing is installed and no architecture is added to this machine.
#
#   kernel.sh ARCH DIR     ARCH as Debian calls it: arm64
#
# Leaves DIR/vmlinuz, DIR/modules (kernel modules), DIR/busybox. What is there
# already is not fetched again. TESTKERNEL_SUITE (trixie) and TESTKERNEL_FLAVOUR
# (cloud-ARCH, or e.g. arm64-16k) choose another kernel.
set -euo pipefail

arch=${1:?ARCH} dir=${2:?DIR}
suite=${TESTKERNEL_SUITE:-trixie} flavour=${TESTKERNEL_FLAVOUR:-cloud-$arch}
mirror=${TESTKERNEL_MIRROR:-http://deb.debian.org/debian}

[ ! -e "$dir/complete" ] || exit 0
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

get() { curl -fsS --retry 3 --max-time 900 -o "$2" "$mirror/$1"; }

get "dists/$suite/main/binary-$arch/Packages.xz" "$tmp/Packages.xz"
xz -d "$tmp/Packages.xz"

# field PACKAGE FIELD
field() { awk -v p="Package: $1" -v f="$2:" '$0 == p {on = 1} on && $1 == f {print $2; exit} on && /^$/ {exit}' "$tmp/Packages"; }

# unpack PACKAGE: into $tmp/PACKAGE, its checksum compared
unpack() {
  local file sum
  file=$(field "$1" Filename) sum=$(field "$1" SHA256)
  [ -n "$file" ] || { echo "kernel.sh: $suite has no package $1 for $arch" >&2; exit 1; }
  echo "fetching $1 ($suite, $arch)"
  get "$file" "$tmp/$1.deb"
  echo "$sum  $tmp/$1.deb" | sha256sum --quiet -c -
  mkdir "$tmp/$1"
  dpkg-deb -x "$tmp/$1.deb" "$tmp/$1"
}

# the newest image of the flavour: its name carries the kernel's version
image=$(awk '/^Package: linux-image-[0-9]/ {print $2}' "$tmp/Packages" |
  grep -E "^linux-image-[0-9.]+(-[0-9]+|\+[a-z0-9]+)-$flavour\$" | sort -V | tail -1)
[ -n "$image" ] || { echo "kernel.sh: $suite has no kernel of flavour $flavour for $arch" >&2; exit 1; }
unpack "$image"
unpack busybox-static
cp "$tmp/$image"/boot/vmlinuz-* "$dir/vmlinuz"
rm -rf "$dir/modules"
mv "$(find "$tmp/$image" -type d -path '*lib/modules' | head -1)" "$dir/modules"
cp "$(find "$tmp/busybox-static" -type f -path '*bin/busybox' | head -1)" "$dir/busybox"
echo "${image#linux-image-}" >"$dir/complete"
