package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const securityfs = "/sys/kernel/security"

// parseLSMs reads /sys/kernel/security/lsm: names with commas between them.
func parseLSMs(text string) []string {
	var names []string
	for n := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		if n = strings.TrimSpace(n); n != "" {
			names = append(names, n)
		}
	}
	return names
}

// lsmNames are the numbers of include/uapi/linux/lsm.h, from 100 on.
var lsmNames = []string{
	"capability", "selinux", "smack", "tomoyo", "apparmor", "yama", "loadpin",
	"safesetid", "lockdown", "bpf", "landlock", "ima", "evm", "ipe",
}

// activeLSMs returns the active security modules, from securityfs or, where that
// is not mounted, from lsm_list_modules (Linux 6.8).
func activeLSMs() ([]string, error) {
	text, err := os.ReadFile(securityfs + "/lsm")
	if err == nil {
		return parseLSMs(string(text)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ids := make([]uint64, 64)
	size := uint32(len(ids) * 8)
	n, _, errno := unix.Syscall(unix.SYS_LSM_LIST_MODULES, uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("no %s/lsm, and lsm_list_modules: %w", securityfs, errno)
	}
	return namesOfLSMs(ids[:min(int(n), len(ids))]), nil
}

func namesOfLSMs(ids []uint64) []string {
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		if id >= 100 && id-100 < uint64(len(lsmNames)) {
			names = append(names, lsmNames[id-100])
		} else {
			names = append(names, fmt.Sprintf("number %d", id))
		}
	}
	return names
}
