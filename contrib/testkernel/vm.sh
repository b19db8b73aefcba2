#!/usr/bin/env bash
# Runs the tests of kernel faults in an emulated amd64 machine (QEMU, no KVM):
# a kernel, an initramfs with the test programs, and a disk that each boot makes anew.
#
#   vm.sh [KERNEL...]   debian-6.1 | debian (the newest stable one) | fault
#
# debian…  Debian's own cloud kernels, fetched as files
# fault    a kernel with error injection: the image TEST_KERNEL names (vmlinux, or
#          one packed with xz); without it the one that build-kernel.sh made, or makes
#
# ONLY         regular expression: only these tests
# BENCH        regular expression: these benchmarks, and no test; BENCHTIME (2000x)
# PACKAGES     folders of test packages (kernel kernel/predicate kernel/chain plugin test/kernel, as far as there are tests)
# TESTKERNEL_FORMAT   -test.v of the test programs (true; test2json for go tool test2json)
# TESTKERNEL_CPUS, _MEMORY (MB), _TIMEOUT (seconds)   of the machine
# TESTKERNEL_CACHE    where kernels are kept (~/.cache/faultgraft/testkernel)
#
# Exit status 0: all tests passed. The last line of each machine is "=== VM END KERNEL VERDICT".
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source-path=SCRIPTDIR source=image.sh
. "$here/image.sh"

cache=${TESTKERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/testkernel}
[ $# -gt 0 ] || set -- fault
packages=()
for p in ${PACKAGES:-kernel kernel/predicate kernel/chain plugin test/kernel}; do
  if compgen -G "$p/*_test.go" >/dev/null; then packages+=("$p"); fi
done
[ ${#packages[@]} -gt 0 ] || { echo "vm.sh: none of these packages has tests: $PACKAGES" >&2; exit 2; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# The rate of the time-stamp counter, which an emulated processor shares with
# this one. microvm has no clock that the kernel could measure it against, and
# without being told it does not boot. Off by a little, the guest's clock is.
khz=$(awk -F: '/^cpu MHz/ {printf "%d", $2 * 1000; exit}' /proc/cpuinfo)
[ -n "$khz" ] || khz=1000000

# boot KERNEL VMLINUX INITRAMFS: the machine's console on stdout
boot() {
  local disk=$tmp/disk
  truncate -s 64M "$disk"
  mkfs.ext4 -q -F "$disk"
  # acpi=off: with ACPI the interrupt controller that the timer needs is off.
  # -cx16: QEMU 7.2 breaks cmpxchg16b, Debian's 6.12 then faults twice in kmalloc.
  timeout --foreground "${TESTKERNEL_TIMEOUT:-2400}" qemu-system-x86_64 -nodefaults -no-user-config -display none \
    -machine microvm,acpi=off -accel tcg,thread=multi -cpu max,-cx16 \
    -smp "${TESTKERNEL_CPUS:-2}" -m "${TESTKERNEL_MEMORY:-1536}" -no-reboot \
    -kernel "$2" -initrd "$3" -serial stdio \
    -drive "file=$disk,if=none,id=disk,format=raw" -device virtio-blk-device,drive=disk \
    -append "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr tsc=reliable tsc_early_khz=$khz lpj=$khz no_timer_check rcupdate.rcu_expedited=1 audit=0" \
    </dev/null | sed -u 's/\r$//'
}

test_programs "$tmp/tests" "${packages[@]}"
case " ${packages[*]} " in *' test/kernel '*) lab_programs "$tmp/tests" ;; esac # containers
archive "$tmp/tests" >"$tmp/tests.cpio"

failed=0
for name; do
  find_kernel "$name" # sets kernel, vmlinux, debian
  mkdir -p "$tmp/$kernel/etc" "$tmp/$kernel/lib/modules" "$tmp/$kernel/boot"
  [ -z "$debian" ] || unpack_debian "$debian" "$tmp/$kernel"
  printf 'kernel=%q\nonly=%q\nbench=%q\nbenchtime=%q\nformat=%q\npackages=%q\n' \
    "$kernel" "${ONLY:-.}" "${BENCH:-}" "${BENCHTIME:-2000x}" "${TESTKERNEL_FORMAT:-true}" "${packages[*]}" >"$tmp/$kernel/etc/vm"
  { cat "$tmp/tests.cpio"; archive "$tmp/$kernel"; } >"$tmp/initramfs"
  echo "=== VM BOOT $kernel"
  start=$SECONDS verdict=ok
  boot "$kernel" "$vmlinux" "$tmp/initramfs" | tee "$tmp/log" || verdict='did not end by itself (time-out, or QEMU failed)'
  if [ "$verdict" = ok ] && ! grep -q '^RESULT 0$' "$tmp/log"; then
    verdict='tests failed'
    grep -q '^RESULT ' "$tmp/log" || verdict='the machine died'
  fi
  [ "$verdict" = ok ] || failed=1
  echo "=== VM END $kernel $((SECONDS - start)) s: $verdict"
done
exit $failed
