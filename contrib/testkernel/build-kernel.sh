#!/usr/bin/env bash
# Builds the kernel with error injection from Debian's linux-source: the options
# of fault.config and what they need, nothing else. Some 15 minutes on two idle cores.
#
#   build-kernel.sh DIR    leaves DIR/vmlinux, stripped; does nothing when it is up to date
#
# CONFIG_ONLY=1  stop after the check that the kernel has every option asked for
# TESTKERNEL_JOBS  of make (the number of processors)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

dir=${1:?DIR}
source=linux-source-6.12
stamp="$source $(sha256sum <"$here/fault.config" | cut -c1-16)"
[ "$(cat "$dir/complete" 2>/dev/null)" != "$stamp" ] || exit 0
"$here/../lab/packages.sh" faultkernel
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
# shellcheck source-path=SCRIPTDIR source=debian.sh
. "$here/debian.sh"

index amd64
unpack "$source"
tree=$tmp/tree out=$tmp/out
mkdir "$tree"
tar -xf "$tmp/$source/usr/src/$source.tar.xz" -C "$tree" --strip-components=1
mkdir "$out"

echo "configuring $source"
make -C "$tree" O="$out" -s tinyconfig
"$tree/scripts/kconfig/merge_config.sh" -m -O "$out" "$out/.config" "$here/fault.config" >/dev/null
make -C "$tree" O="$out" -s olddefconfig
# an option whose dependencies are missing is dropped without a word
bad=0
while IFS='=' read -r option value; do
  case $option in CONFIG_*) ;; *) continue ;; esac
  if [ "$value" = n ]; then
    ! grep -q "^$option=" "$out/.config" || { echo "build-kernel.sh: $option is on" >&2; bad=1; }
  elif ! grep -qxF "$option=$value" "$out/.config"; then
    echo "build-kernel.sh: $option is not $value" >&2
    bad=1
  fi
done <"$here/fault.config"
[ "$bad" = 0 ] || exit 1
if [ -n "${CONFIG_ONLY:-}" ]; then
  echo 'every option of fault.config is as asked'
  exit 0
fi

log=$dir/build.log
echo "building the kernel (some 15 minutes on two idle processors; the log is $log)"
start=$SECONDS
make -C "$tree" O="$out" -s -j"${TESTKERNEL_JOBS:-$(nproc)}" vmlinux >"$log" 2>&1 </dev/null &
pid=$!
trap 'kill "$pid" 2>/dev/null; rm -rf "$tmp"' EXIT
while kill -0 "$pid" 2>/dev/null; do
  sleep 5
  [ $(((SECONDS - start) / 60)) = "${shown:-0}" ] || { shown=$(((SECONDS - start) / 60)); echo "  $shown minutes, $(find "$out" -name '*.o' | wc -l) objects"; }
done
trap 'rm -rf "$tmp"' EXIT
wait "$pid" || { tail -n 20 "$log" >&2; echo "build-kernel.sh: the build failed: the whole log is $log" >&2; exit 1; }
strip -o "$dir/vmlinux.new" "$out/vmlinux"
mv "$dir/vmlinux.new" "$dir/vmlinux"
echo "$stamp" >"$dir/complete"
echo "built $dir/vmlinux in $((SECONDS - start)) s"
