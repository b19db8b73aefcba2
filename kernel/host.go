package kernel

import (
	"bytes"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	vmlinuxBTF    = "/sys/kernel/btf/vmlinux"
	injectionList = "/sys/kernel/debug/error_injection/list"
	kprobePMU     = "/sys/bus/event_source/devices/kprobe"
)

// host is what was read from the running kernel.
type host struct {
	config    config // nil if it was not found, then configErr says why
	configErr error
	// symbols has those targets that the kernel has; nil if it could not be read.
	symbols map[string]bool
	// injectable is the error-injection list; nil if it could not be read, as
	// where debugfs is not mounted.
	injectable   map[string]errorKind
	btf          bool
	kprobeEvents bool // the kernel can attach kprobes by perf_event_open(2), Linux 4.17
	lsms         []string
	lsmErr       error // why lsms is not known
	privileged   bool  // this process may load programs
	load         func(*ebpf.ProgramSpec) error
}

func readHost() *host {
	h := readSettings()
	// It only sharpens a reason; where it cannot be read, nil says so.
	if text, err := os.ReadFile("/proc/kallsyms"); err == nil {
		h.symbols = parseSymbols(text, targetNames())
	}
	return h
}

// readSettings reads all but the symbols, which take long.
func readSettings() *host {
	h := &host{load: tryLoad, btf: exists(vmlinuxBTF), kprobeEvents: exists(kprobePMU), privileged: mayLoad()}
	var u unix.Utsname
	if h.configErr = unix.Uname(&u); h.configErr == nil {
		h.config, h.configErr = readConfig(unix.ByteSliceToString(u.Release[:]))
	}
	h.lsms, h.lsmErr = activeLSMs()
	if text, err := os.ReadFile(injectionList); err == nil {
		h.injectable = parseInjectable(text)
	}
	return h
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func targetNames() map[string]bool {
	names := map[string]bool{}
	for _, p := range probes {
		for _, t := range p.targets {
			if t.name != "" {
				names[t.name] = true
			}
		}
	}
	return names
}

// parseSymbols returns which of the wanted functions /proc/kallsyms names:
// "address type name [module]" on each line. Nil if it names no function at all.
func parseSymbols(text []byte, wanted map[string]bool) map[string]bool {
	var found map[string]bool
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < 3 || !strings.Contains("tTwW", string(f[1])) {
			continue
		}
		if found == nil {
			found = map[string]bool{}
		}
		if name := string(f[2]); wanted[name] {
			found[name] = true
		}
	}
	return found
}
