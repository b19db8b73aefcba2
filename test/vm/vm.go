// Package vm says to tests whether they run in the emulated machine of
// contrib/testkernel, and on which kernel. What a test needs it asks for first:
//
//	vm.NeedFault(t)
//
// All skips have the words "make test-vm" in them, by which test/tiers tells
// what runs in its tier vm from what was skipped for another reason.
package vm

import (
	"os"
	"strings"
	"testing"
)

// Fault is the name of the kernel with error injection; the names of stock
// kernels begin with "debian-".
const Fault = "fault"

// Kernel is the name of the kernel: "fault", "debian-6.1", "debian-6.12"; ""
// outside of the machine.
func Kernel() string {
	if os.Getenv("FAULTGRAFT_VM") != "1" {
		return ""
	}
	return os.Getenv("FAULTGRAFT_VM_KERNEL")
}

// Need skips outside of the machine.
func Need(t testing.TB) {
	t.Helper()
	if Kernel() == "" {
		t.Skip("runs in an emulated machine only: make test-vm")
	}
}

// NeedFault skips but on the kernel with error injection.
func NeedFault(t testing.TB) {
	t.Helper()
	if Kernel() != Fault {
		t.Skip("needs a kernel with error injection: make test-vm KERNEL=fault")
	}
}

// NeedDebian skips but on a stock kernel of Debian.
func NeedDebian(t testing.TB) {
	t.Helper()
	if !strings.HasPrefix(Kernel(), "debian-") {
		t.Skip("is about stock kernels: make test-vm KERNEL=debian-6.1")
	}
}

// Disk is the machine's block device, which holds an ext4 made for this boot
// and is not mounted. It skips where there is none: on stock kernels, whose
// driver of it is a module.
func Disk(t testing.TB) string {
	t.Helper()
	disk := os.Getenv("FAULTGRAFT_VM_DISK")
	if disk == "" {
		t.Skip("needs the disk of the emulated machine: make test-vm KERNEL=fault")
	}
	return disk
}
