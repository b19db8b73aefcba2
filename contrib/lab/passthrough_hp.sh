#!/usr/bin/env bash
# Builds libfuse's example passthrough_hp, which `make bench` compares the layer
# with, and prints where it is. The source is that of the machine's libfuse3-dev,
# taken with apt from a package list of its own: the machine's are not touched.
#
# Everything on disk is under ~/.cache/faultgraft/passthrough_hp.
set -euo pipefail

die() {
  echo "passthrough_hp: $*" >&2
  exit 1
}
command -v g++ >/dev/null || die "needs g++ (apt-get install g++)"
version=$(dpkg-query -W -f '${Version}' libfuse3-dev 2>/dev/null) || die "needs libfuse3-dev (apt-get install libfuse3-dev)"
dir=${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/passthrough_hp
program=$dir/$version/passthrough_hp
if [ ! -x "$program" ]; then
  mkdir -p "$dir/$version/src" "$dir/lists/partial"
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  {
    echo "deb-src http://deb.debian.org/debian $codename main"
    echo "deb-src http://deb.debian.org/debian $codename-updates main"
    echo "deb-src http://deb.debian.org/debian-security $codename-security main"
  } >"$dir/sources.list"
  own=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$dir/lists"
    -o "Dir::Cache=$dir/apt" -o APT::Sandbox::User=root -o Acquire::Languages=none)
  cd "$dir/$version/src"
  { apt-get "${own[@]}" update && apt-get "${own[@]}" source --download-only "fuse3=$version"; } >&2 ||
    die "apt has no source of fuse3 $version"
  tar -xf fuse3_*.orig.tar.?z --strip-components=1
  read -ra flags <<<"$(pkg-config --cflags --libs fuse3)"
  g++ -O2 -DNDEBUG -w example/passthrough_hp.cc "${flags[@]}" -o "$program.new" >&2
  mv "$program.new" "$program"
  rm -rf "$dir/$version/src" "$dir/lists" "$dir/apt" "$dir/sources.list"
fi
echo "$program"
