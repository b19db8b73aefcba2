# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by vm.sh: what goes into the machine.

# archive DIR: as the kernel unpacks it at boot. Not compressed: that costs the emulated machine more than it saves.
archive() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet); }

# test_programs DIR PACKAGE...: the root folder with the test programs
test_programs() {
  local root=$1 p
  shift
  mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,lib,usr/bin,new,etc,opt} "$root/src/bin"
  cp "$(command -v busybox)" "$root/bin/busybox"
  cp contrib/testkernel/init "$root/init"
  cp contrib/testkernel/testrun "$root/etc/testrun"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  echo 'building the tests'
  for p; do
    mkdir -p "$root/src/$p"
    CGO_ENABLED=0 go test -c -ldflags='-s -w' -o "$root/src/$p/${p##*/}.test" "./$p"
    [ ! -d "$p/testdata" ] || cp -r "$p/testdata" "$root/src/$p/"
  done
  case " $* " in *' test/'*) CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$root/src/bin/faultgraft" ./cmd/faultgraft ;; esac
  case " $* " in *'test/process '* | *'test/kernel '*) CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$root/src/bin/holder" ./test/holder ;; esac
}

# program ROOT PROGRAM FOLDER: copies it into the folder, and the libraries that it is linked with to where they are here
program() {
  local lib
  mkdir -p "$1$3"
  cp -L "$2" "$1$3/"
  for lib in $(ldd "$2" 2>/dev/null | grep -o '/[^ ]*'); do # it fails for a static one
    mkdir -p "$1${lib%/*}"
    cp -L "$lib" "$1$lib"
  done
}

# property_programs DIR: targets of test/property, and what starts them
property_programs() {
  local p
  for p in target storms random; do
    gcc -O1 -pthread -static -o "$1/src/bin/$p" "test/target/$p.c"
  done
  CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$1/src/bin/gorandom" ./test/target/random
  for p in unshare prlimit setpriv; do
    program "$1" "$(command -v $p)" /opt/lab/bin
  done
}

# checkpoint_programs DIR: CRIU, and GNU's tar, by which it keeps the content of a tmpfs
checkpoint_programs() {
  program "$1" "$(command -v criu || echo /usr/sbin/criu)" /opt/lab/bin
  program "$1" "$(command -v tar)" /opt/lab/bin # found before that of busybox
}

# lab_programs DIR: containerd, its shim, nerdctl, runc and the busybox image, as contrib/lab builds them
lab_programs() {
  local lab=${FAULTGRAFT_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/lab} p
  contrib/lab/lab.sh build
  contrib/lab/lab.sh image
  for p in containerd containerd-shim-runc-v2 nerdctl runc; do
    program "$1" "$lab/bin/$p" /opt/lab/bin
  done
  cp "$lab/img/busybox.tar" "$1/opt/lab/"
}

# unpack_debian FROM TO: the configuration and the modules that are used here, with numbers for the order in which they
# need each other; a kernel may have them built in. From unix_diag on they are what CRIU asks for.
unpack_debian() {
  local m file name n=10
  cp "$1/config" "$2/boot/config-$(cat "$1/complete")"
  for m in overlay fuse loop unix_diag inet_diag tcp_diag udp_diag raw_diag af_packet_diag netlink_diag libcrc32c nfnetlink nf_tables veth tun; do
    file=$(find "$1/modules" -name "$m.ko*" | head -1)
    name=$2/lib/modules/$((n++))-$m.ko
    case $file in
      '') ;;
      *.xz) xz -dc "$file" >"$name" ;;
      *.zst) zstd -qdc "$file" >"$name" ;;
      *) cp "$file" "$name" ;;
    esac
  done
}

# find_kernel NAME: sets kernel (its name inside the machine), vmlinux, and debian (the folder of kernel.sh, or nothing)
find_kernel() {
  local suite=trixie
  debian=
  case $1 in
    fault)
      kernel=fault
      fault_kernel
      ;;
    debian | debian-6.1)
      [ "$1" = debian ] || suite=bookworm
      debian=$cache/$suite-cloud-amd64
      TESTKERNEL_SUITE=$suite contrib/testkernel/kernel.sh amd64 "$debian"
      vmlinux=$debian/vmlinux
      kernel=debian-$(cut -d. -f1,2 "$debian/complete")
      ;;
    *)
      echo "vm.sh: no kernel '$1': fault, debian or debian-6.1" >&2
      exit 2
      ;;
  esac
}

# fault_kernel sets vmlinux: TEST_KERNEL, or what build-kernel.sh makes
fault_kernel() {
  if [ -z "${TEST_KERNEL:-}" ]; then
    vmlinux=$cache/fault/vmlinux
    contrib/testkernel/build-kernel.sh "$cache/fault"
    return
  fi
  [ -r "$TEST_KERNEL" ] || { echo "vm.sh: TEST_KERNEL names $TEST_KERNEL, which cannot be read" >&2; exit 2; }
  vmlinux=$TEST_KERNEL
  case $TEST_KERNEL in
    *.xz)
      vmlinux=$tmp/vmlinux
      xz -dc "$TEST_KERNEL" >"$vmlinux"
      ;;
  esac
}
