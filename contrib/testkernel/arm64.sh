#!/usr/bin/env bash
# Runs the swap tests for arm64 in an emulated machine: Debian's arm64 kernel under
# qemu-system-aarch64, an initramfs with the test programs, no disk, no network.
# Slow (17 minutes on two cores that others use too), so it is part of no other target.
#
#   arm64.sh [TEST-REGEXP]    only these tests
#
# TESTKERNEL_CPU  -cpu of QEMU (max,pauth=off: with scalable vectors)
# TESTKERNEL_CPUS  processors (2; 1 where the host is busy, then without TestDeadServer, which serves its own mount)
# TESTKERNEL_TIMEOUT  seconds after which the machine is ended (3600)
# TESTKERNEL_CACHE    where the kernel is kept (~/.cache/faultgraft/testkernel)
set -euo pipefail
cd "$(dirname "$0")/../.."

only=${1:-.}
cpu=${TESTKERNEL_CPU:-max,pauth=off}
suite=${TESTKERNEL_SUITE:-trixie} flavour=${TESTKERNEL_FLAVOUR:-cloud-arm64}
kernel=${TESTKERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/testkernel}/$suite-$flavour
contrib/testkernel/kernel.sh arm64 "$kernel"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,lib,usr/bin,new,etc} "$root/src/test/process" "$root/src/tracer/parasite" "$root/src/bin"

echo 'building the tests for arm64'
export GOOS=linux GOARCH=arm64 CGO_ENABLED=0
go test -c -ldflags='-s -w' -o "$root/src/bin/tracer.test" ./tracer
go test -c -ldflags='-s -w' -o "$root/src/bin/process.test" ./test/process
go build -trimpath -ldflags='-s -w' -o "$root/src/bin/faultgraft" ./cmd/faultgraft
for program in holder hungfs withpid soak/recorder; do # what test/process starts, test/programs would build
  go build -trimpath -ldflags='-s -w' -o "$root/src/bin/" "./test/$program"
done
cc=aarch64-linux-gnu-gcc
"$cc" -O2 -pthread -o "$root/src/bin/target" test/target/target.c
"$cc" -O2 -pthread -static -o "$root/src/bin/target-static" test/target/target.c
"$cc" -O2 -pthread -o "$root/src/bin/accomplice" test/target/accomplice.c
libs=$(dirname "$("$cc" -print-file-name=libc.so.6)")
cp -L "$libs/libc.so.6" "$libs/ld-linux-aarch64.so.1" "$libs/libgcc_s.so.1" "$root/lib/"
cp "$kernel/busybox" "$root/bin/busybox"
for program in env unshare nsenter; do ln -s /bin/busybox "$root/usr/bin/$program"; done # tests have their paths
cp contrib/testkernel/init "$root/init"
cp contrib/testkernel/arm64run "$root/etc/testrun"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
printf 'only=%q\nprocess=%q\n' "$only" "${TESTKERNEL_PROCESS:-}" >"$root/etc/arm64"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$tmp/initramfs"

echo "booting Debian's $(cat "$kernel/complete") under QEMU (-cpu $cpu)"
timeout "${TESTKERNEL_TIMEOUT:-3600}" qemu-system-aarch64 -nodefaults -no-user-config -display none \
  -M virt -cpu "$cpu" -smp "${TESTKERNEL_CPUS:-2}" -m "${TESTKERNEL_MEMORY:-2048}" -accel tcg,thread=multi -no-reboot \
  -kernel "$kernel/vmlinuz" -initrd "$tmp/initramfs" -serial stdio \
  -append 'console=ttyAMA0 quiet panic=-1 mitigations=off rcupdate.rcu_expedited=1 audit=0' </dev/null |
  sed -u 's/\r$//' | tee "$tmp/log" || { echo "arm64.sh: the machine did not end by itself (time-out, or QEMU failed)" >&2; exit 1; }
grep -q '^RESULT 0$' "$tmp/log" || { echo 'arm64.sh: tests failed on arm64, see above' >&2; exit 1; }
