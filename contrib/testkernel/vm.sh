#!/usr/bin/env bash
# Runs the tests of kernel faults in emulated amd64 machines (QEMU, no KVM): a
# kernel, an initramfs with the test programs, and a disk that each boot makes anew.
# Each kernel has a machine for the packages below kernel and one for the others, and
# two run beside each other: tests keep one processor busy, which is their own.
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
# FAULTGRAFT_TEST_WALK, FAULTGRAFT_TEST_SEED   which deaths of the agent are walked (test/kernel TestAgentDeathAtEachStep)
# TESTKERNEL_FORMAT   -test.v of the test programs (true; test2json for go tool test2json)
# TESTKERNEL_MACHINES   how many machines run beside each other (2; 1 with BENCH, whose figures are to be compared)
# TESTKERNEL_CPUS, _MEMORY (MB), _TIMEOUT (seconds)   of a machine
# TESTKERNEL_CACHE    where kernels are kept (~/.cache/faultgraft/testkernel)
#
# Exit status 0: all tests passed. The last line of each machine is "=== VM END KERNEL VERDICT".
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
# shellcheck source-path=SCRIPTDIR source=image.sh
. "$here/image.sh"

beside=${TESTKERNEL_MACHINES:-2}
[ -z "${BENCH:-}" ] || beside=1
cache=${TESTKERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/faultgraft/testkernel}
[ $# -gt 0 ] || set -- fault
packages=()
for p in ${PACKAGES:-kernel kernel/predicate kernel/chain plugin test/kernel}; do
  if compgen -G "$p/*_test.go" >/dev/null; then packages+=("$p"); fi
done
[ ${#packages[@]} -gt 0 ] || { echo "vm.sh: none of these packages has tests: $PACKAGES" >&2; exit 2; }

tmp=$(mktemp -d)
# shellcheck disable=SC2317,SC2329 # called by the trap
finish() {
  local pid
  trap - TERM
  [ -z "${launcher:-}" ] || kill "$launcher" 2>/dev/null || true
  for pid in "$tmp"/*/qemu.pid; do
    [ ! -e "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true
  done
  rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The rate of the time-stamp counter, which an emulated processor shares with
# this one. microvm has no clock that the kernel could measure it against, and
# without being told it does not boot. Off by a little, the guest's clock is.
khz=$(awk -F: '/^cpu MHz/ {printf "%d", $2 * 1000; exit}' /proc/cpuinfo)
[ -n "$khz" ] || khz=1000000

# boot DIR VMLINUX: the machine's console on stdout
boot() {
  local disk=$1/disk
  truncate -s 64M "$disk"
  mkfs.ext4 -q -F "$disk"
  # acpi=off: with ACPI the interrupt controller that the timer needs is off.
  # -cx16: QEMU 7.2 breaks cmpxchg16b, Debian's 6.12 then faults twice in kmalloc.
  # thread=single: with a thread for each processor QEMU (7.2, 8.0) may go on to execute
  # an int3 that the kernel has taken out again where it attached a probe, which ends the
  # guest with "Oops: int3" (bugzilla.redhat.com 2216496).
  timeout --foreground "${TESTKERNEL_TIMEOUT:-2400}" qemu-system-x86_64 -nodefaults -no-user-config -display none \
    -machine microvm,acpi=off -accel tcg,thread=single -cpu max,-cx16 \
    -smp "${TESTKERNEL_CPUS:-2}" -m "${TESTKERNEL_MEMORY:-1536}" -no-reboot \
    -pidfile "$1/qemu.pid" -kernel "$2" -initrd "$1/initramfs" -serial stdio \
    -drive "file=$disk,if=none,id=disk,format=raw" -device virtio-blk-device,drive=disk \
    -append "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr tsc=reliable tsc_early_khz=$khz lpj=$khz no_timer_check rcupdate.rcu_expedited=1 audit=0" \
    </dev/null | sed -u 's/\r$//'
}

# machine DIR KERNEL VMLINUX: runs one; DIR has its part of the initramfs
machine() {
  local start=$SECONDS verdict=ok
  { cat "$1.cpio"; archive "$1/root"; } >"$1/initramfs"
  echo "=== VM BOOT $2"
  boot "$1" "$3" | tee "$1/log" || verdict='did not end by itself (time-out, or QEMU failed)'
  if [ "$verdict" = ok ] && ! grep -q '^RESULT 0$' "$1/log"; then
    verdict='tests failed'
    grep -q '^RESULT ' "$1/log" || verdict='the machine died'
  fi
  echo "=== VM END $2 $((SECONDS - start)) s: $verdict"
}

groups=()
for group in kernel other; do
  mine=()
  for p in "${packages[@]}"; do
    case $p in kernel | kernel/*) g=kernel ;; *) g=other ;; esac
    [ "$g" != "$group" ] || mine+=("$p")
  done
  [ ${#mine[@]} -gt 0 ] || continue
  groups+=("$group:${mine[*]}")
  test_programs "$tmp/$group" "${mine[@]}"
  case " ${mine[*]} " in *' test/kernel '*) lab_programs "$tmp/$group"; checkpoint_programs "$tmp/$group" ;; esac # containers
  case " ${mine[*]} " in *' test/property '*) property_programs "$tmp/$group" ;; esac
  archive "$tmp/$group" >"$tmp/$group.cpio"
done

machines=()
for name; do
  find_kernel "$name" # sets kernel, vmlinux, debian
  for g in "${groups[@]}"; do
    dir=$tmp/$kernel-${g%%:*}
    mkdir -p "$dir/root/etc" "$dir/root/lib/modules" "$dir/root/boot"
    ln "$tmp/${g%%:*}.cpio" "$dir.cpio"
    [ -z "$debian" ] || unpack_debian "$debian" "$dir/root"
    printf 'kernel=%q\nonly=%q\nbench=%q\nbenchtime=%q\nformat=%q\npackages=%q\nwalk=%q\nseed=%q\nlimit=%q\n' \
      "$kernel" "${ONLY:-.}" "${BENCH:-}" "${BENCHTIME:-2000x}" "${TESTKERNEL_FORMAT:-true}" "${g#*:}" \
      "${FAULTGRAFT_TEST_WALK:-}" "${FAULTGRAFT_TEST_SEED:-$(date +%F)}" "$((${TESTKERNEL_TIMEOUT:-2400} / 2))s" >"$dir/root/etc/vm"
    : >"$dir/out"
    machines+=("$dir|$kernel|$vmlinux")
  done
done

launch() {
  local m dir kernel vmlinux
  for m in "${machines[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$beside" ]; do wait -n || true; done
    IFS='|' read -r dir kernel vmlinux <<<"$m"
    # its end is said even if the machine could not be made
    { machine "$dir" "$kernel" "$vmlinux" || echo "=== VM END $kernel 0 s: it could not be started"; } >"$dir/out" 2>&1 &
  done
  wait
}
launch &
launcher=$!

failed=0
for m in "${machines[@]}"; do
  out=${m%%|*}/out
  # in the order of their start; tail ends when its reader does. Not in front: there a signal would wait for its end
  { tail -n +1 -f "$out" | sed -u '/^=== VM END /q' || true; } &
  wait $!
  grep -q '^=== VM END .*: ok$' "$out" || failed=1
done
exit $failed
