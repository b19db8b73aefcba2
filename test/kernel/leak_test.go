package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// noLeaks fails the test if it leaves anything of eBPF in the kernel: programs,
// maps, links, pins, kprobes. What the kernel frees a moment later by itself has
// that moment.
func noLeaks(t testing.TB) {
	t.Helper()
	before := inKernel(t)
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			left = left[:0]
			for thing := range inKernel(t) {
				if !before[thing] {
					left = append(left, thing)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("left in the kernel: %s", strings.Join(left, ", "))
	})
}

// awaitNothingBut waits until the kernel has no more than it had.
func awaitNothingBut(t testing.TB, before map[string]bool) {
	t.Helper()
	await(t, "nothing is left in the kernel", func() bool {
		for thing := range inKernel(t) {
			if !before[thing] {
				return false
			}
		}
		return true
	})
}

// inKernel is the set of what eBPF has there, in words.
func inKernel(t testing.TB) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			stop(t, err)
			break
		}
		id = next
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			name := ""
			if info, err := p.Info(); err == nil {
				name = info.Name
			}
			all[fmt.Sprintf("program %d (%s %s)", id, p.Type(), name)] = true
			_ = p.Close()
		}
	}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if err != nil {
			stop(t, err)
			break
		}
		id = next
		if m, err := ebpf.NewMapFromID(id); err == nil {
			all[fmt.Sprintf("map %d (%s)", id, m.Type())] = true
			_ = m.Close()
		}
	}
	for again := true; again; {
		links := new(link.Iterator)
		for links.Next() {
			all[fmt.Sprintf("link %d", links.ID)] = true
		}
		// one that is being made has its number already (bpf_link_by_id in kernel/bpf/syscall.c, 6.12)
		if again = errors.Is(links.Err(), unix.EAGAIN); !again {
			stop(t, links.Err())
		}
		links.Close()
	}
	err := filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all["pin "+path] = true
		}
		return nil // it went away meanwhile
	})
	if err != nil {
		t.Error(err)
	}
	// Documentation/trace/kprobes.rst
	probes, err := os.ReadFile("/sys/kernel/debug/kprobes/list")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(probes)) {
		all["kprobe "+strings.TrimSpace(line)] = true
	}
	return all
}

// stop takes the error that ends a walk over ids: there is no next one.
func stop(t testing.TB, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
