package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// programName is seen in the kernel's list of programs while a load is tried.
const programName = "faultgraft_try"

// license is needed by bpf_override_return, BPF_MODIFY_RETURN and LSM programs.
const license = "GPL"

// returnZero is a program that changes nothing.
func returnZero() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
}

func modifyReturnProgram(function string) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: programName, Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn, AttachTo: function,
		Instructions: returnZero(), License: license,
	}
}

func lsmProgram(hook string) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: programName, Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: hook,
		Instructions: returnZero(), License: license,
	}
}

func overrideProgram() *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: programName, Type: ebpf.Kprobe, License: license,
		Instructions: append(asm.Instructions{
			asm.Mov.Imm(asm.R2, -int32(unix.ENOMEM)), // r1 is the context already
			asm.FnOverrideReturn.Call(),
		}, returnZero()...),
	}
}

// tryLoad loads a program and closes it: the verifier has seen it, nothing runs it.
func tryLoad(spec *ebpf.ProgramSpec) error {
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	return p.Close()
}

// mayLoad says whether this process has what bpf(2) asks for: CAP_BPF and
// CAP_PERFMON (Linux 5.8), or CAP_SYS_ADMIN for both.
func mayLoad() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if unix.Capget(&h, &d[0]) != nil {
		return false
	}
	has := func(c uint) bool { return d[c/32].Effective&(1<<(c%32)) != 0 }
	return has(unix.CAP_SYS_ADMIN) || has(unix.CAP_BPF) && has(unix.CAP_PERFMON)
}

func denied(err error) bool {
	return errors.Is(err, unix.EPERM)
}

// cut makes one short line of a load's error: the verifier's last words if it
// has some, and the errno. It does not pass on the library's guess that an EPERM
// is RLIMIT_MEMLOCK: since Linux 5.11 programs are not counted there.
func (h *host) cut(err error) string {
	if denied(err) && !h.privileged {
		return "EPERM: CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, are needed"
	} else if denied(err) {
		return "EPERM although the capabilities are there: a user namespace, lockdown or another security policy is in the way"
	}
	errno := ""
	if e := unix.Errno(0); errors.As(err, &e) {
		errno = unix.ErrnoName(e)
	}
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		for i := len(v.Log) - 1; i >= 0; i-- {
			line := strings.TrimSpace(v.Log[i])
			if line == "" || strings.HasPrefix(line, "processed ") || strings.HasPrefix(line, "verification time ") {
				continue
			}
			if errno == "" {
				return line
			}
			return fmt.Sprintf("%s (%s)", line, errno)
		}
	}
	if errors.Is(err, ebpf.ErrNotSupported) && errno == "" {
		return "not in the kernel's type information, or not supported"
	}
	if errno != "" {
		return errno
	}
	return strings.SplitN(err.Error(), "\n", 2)[0]
}
