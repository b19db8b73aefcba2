#!/bin/sh
# Assembles the code for one architecture (amd64, arm64) into the raw bytes that
# package tracer embeds. Needs binutils for that architecture.
# Usage: build.sh ARCH OUTPUT
set -eu
cd "$(dirname "$0")"
case $1 in
  amd64) prefix=x86_64-linux-gnu- ;;
  arm64) prefix=aarch64-linux-gnu- ;;
  *) echo "build.sh: no code for architecture '$1': amd64 or arm64" >&2; exit 2 ;;
esac
command -v "${prefix}as" >/dev/null || { echo "build.sh: ${prefix}as is not installed: apt install binutils-${prefix%-}" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${prefix}as" -o "$tmp/p.o" "$1.S"
"${prefix}objcopy" -O binary -j .text "$tmp/p.o" "$2"
