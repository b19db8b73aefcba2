package graft

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Check is one finding of Doctor.
type Check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	// Detail says what was found, and what it means.
	Detail string `json:"detail"`
	// Fix says what to do about what is not OK; empty where nothing can be done.
	Fix string `json:"fix,omitempty"`
}

// Doctor tries what a graft needs on this machine and changes nothing.
func Doctor() []Check {
	return []Check{checkArch(), checkKernel(), checkPrivileges(), checkPtrace(), checkFuse(), checkMountAPI(), checkSharedMaps(), checkPassthrough()}
}

func checkArch() Check {
	c := Check{Name: "architecture", Required: true, OK: runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64", Detail: runtime.GOARCH}
	if !c.OK {
		c.Detail += ": moving open files is only built for amd64 and arm64"
	}
	return c
}

// kernelVersion returns major and minor of uname(2).
func kernelVersion() (major, minor int, release string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0, 0, "unknown"
	}
	release = unix.ByteSliceToString(u.Release[:])
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) >= 2 {
		major, _ = strconv.Atoi(f[0])
		minor, _ = strconv.Atoi(f[1])
	}
	return major, minor, release
}

func atLeast(wantMajor, wantMinor int) bool {
	major, minor, _ := kernelVersion()
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

func checkKernel() Check {
	_, _, release := kernelVersion()
	c := Check{Name: "kernel", Required: true, OK: atLeast(5, 12), Detail: release}
	if !c.OK {
		c.Detail += ": too old (pidfd_getfd, openat2, mount_setattr)"
		c.Fix = "boot Linux 5.12 or newer"
	}
	return c
}

func checkPrivileges() Check {
	c := Check{Name: "privileges", Required: true}
	var h = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		c.Detail = fmt.Sprintf("capget: %v", err)
		return c
	}
	var missing []string
	for _, n := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"},
		{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"}, {unix.CAP_FOWNER, "CAP_FOWNER"},
		{unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SETGID, "CAP_SETGID"}, {unix.CAP_MKNOD, "CAP_MKNOD"},
	} {
		if d[n.bit/32].Effective&(1<<(n.bit%32)) == 0 {
			missing = append(missing, n.name)
		}
	}
	if os.Geteuid() != 0 {
		missing = append(missing, "uid 0")
	}
	c.OK = len(missing) == 0
	c.Detail = "root, with the capabilities that are needed"
	if !c.OK {
		c.Detail, c.Fix = "missing: "+strings.Join(missing, ", "), "run as root in the initial user namespace"
	}
	return c
}

const yamaScope = "/proc/sys/kernel/yama/ptrace_scope"

// checkPtrace looks at the security module yama, whose scope 3 forbids every
// attach, also root's, until the machine is booted again
// (Documentation/admin-guide/LSM/Yama.rst).
func checkPtrace() Check {
	c := Check{Name: "ptrace", Required: true, OK: true, Detail: "processes can be stopped and looked at"}
	text, err := os.ReadFile(yamaScope)
	switch scope := strings.TrimSpace(string(text)); {
	case os.IsNotExist(err):
	case err != nil:
		c.OK, c.Detail, c.Fix = false, err.Error(), "mount /proc, and run as root"
	case scope == "3":
		c.OK, c.Detail = false, yamaScope+" is 3: nobody may attach to a process"
		c.Fix = "take kernel.yama.ptrace_scope=3 out of /etc/sysctl.d and boot again; 0 to 2 do"
	default:
		c.Detail += " (" + yamaScope + " is " + scope + ")"
	}
	return c
}

func checkFuse() Check {
	c := Check{Name: "FUSE", Required: true}
	m, err := newFuseMount("doctor", unix.S_IFDIR, 0)
	if err != nil {
		c.Detail = err.Error()
		c.Fix = "load the module (modprobe fuse), and let root open /dev/fuse"
		return c
	}
	m.close()
	c.OK, c.Detail = true, "a detached FUSE mount can be made"
	return c
}

func checkMountAPI() Check {
	c := Check{Name: "propagation groups", OK: atLeast(5, 15), Detail: "shared volumes can be grafted"}
	if !c.OK {
		c.Detail, c.Fix = "volumes with shared propagation cannot be grafted (MOVE_MOUNT_SET_GROUP)", "boot Linux 5.15 or newer"
	}
	return c
}

func checkSharedMaps() Check {
	c := Check{Name: "shared maps of faulted files", OK: atLeast(6, 6), Detail: "FUSE_DIRECT_IO_ALLOW_MMAP"}
	if !c.OK {
		c.Detail, c.Fix = "files that a data rule can match cannot be mapped shared (FUSE_DIRECT_IO_ALLOW_MMAP)", "boot Linux 6.6 or newer"
	}
	return c
}

// Where the flags are in the first request of a connection, INIT, and the bit of
// passthrough among them (struct fuse_in_header and fuse_init_in, include/uapi/linux/fuse.h).
const (
	initFlags       = 40 + 12
	initFlags2      = 40 + 16
	flagInitExt     = 1 << 30
	flagPassthrough = 1 << (37 - 32)
)

// checkPassthrough looks at what the kernel offers: it may be built without.
func checkPassthrough() Check {
	c := Check{Name: "passthrough", Detail: "files that no rule can match are read, written and mapped by the kernel itself"}
	m, err := newFuseMount("doctor", unix.S_IFDIR, 0)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer m.close()
	// The kernel sends INIT when the file system is made; no read of /dev/fuse may be shorter than a request (fs/fuse/dev.c).
	b := make([]byte, 1<<16)
	n, err := unix.Read(m.device, b)
	if err != nil || n < initFlags2+4 {
		c.Detail = fmt.Sprintf("read what the kernel offers: %d bytes, %v", n, err)
		return c
	}
	c.OK = binary.NativeEndian.Uint32(b[initFlags:])&flagInitExt != 0 && binary.NativeEndian.Uint32(b[initFlags2:])&flagPassthrough != 0
	if !c.OK {
		c.Detail, c.Fix = "the kernel has no FUSE_PASSTHROUGH: every read and write of a layer is a request", "boot Linux 6.9 or newer, built with CONFIG_FUSE_PASSTHROUGH"
	}
	return c
}
