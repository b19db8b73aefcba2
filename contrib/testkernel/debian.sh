# shellcheck shell=bash disable=SC2154
# Sourced: fetches packages of Debian as files. Nothing is installed.
# The caller sets $tmp, a folder that it removes.
suite=${TESTKERNEL_SUITE:-trixie}
mirror=${TESTKERNEL_MIRROR:-http://deb.debian.org/debian}

get() { curl -fsS --retry 3 --max-time 900 -o "$2" "$mirror/$1"; }

# index ARCH: the list of the suite's packages, into $tmp/Packages
index() {
  get "dists/$suite/main/binary-$1/Packages.xz" "$tmp/Packages.xz"
  xz -d "$tmp/Packages.xz"
}

# field PACKAGE FIELD: of the first entry of that name
field() { awk -v p="Package: $1" -v f="$2:" '$0 == p {on = 1} on && $1 == f {print $2; exit} on && /^$/ {exit}' "$tmp/Packages"; }

# unpack PACKAGE: into $tmp/PACKAGE, its checksum compared
unpack() {
  local file sum
  file=$(field "$1" Filename) sum=$(field "$1" SHA256)
  [ -n "$file" ] || { echo "${0##*/}: $suite has no package $1" >&2; exit 1; }
  echo "fetching $1 ($suite)"
  get "$file" "$tmp/$1.deb"
  echo "$sum  $tmp/$1.deb" | sha256sum --quiet -c -
  mkdir "$tmp/$1"
  dpkg-deb -x "$tmp/$1.deb" "$tmp/$1"
}
