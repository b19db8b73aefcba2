#!/bin/sh
# Assembles amd64.S into the raw bytes that package tracer embeds.
# Usage: build.sh OUTPUT
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
gcc -c -o "$tmp/p.o" amd64.S
objcopy -O binary -j .text "$tmp/p.o" "$1"
