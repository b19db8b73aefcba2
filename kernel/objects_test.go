package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// kernelObjects are the programs, maps and links that are in the kernel, of
// whatever process.
func kernelObjects(t *testing.T) []string {
	t.Helper()
	var all []string
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		id = next
		all = append(all, fmt.Sprintf("program %d", id))
	}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		id = next
		all = append(all, fmt.Sprintf("map %d", id))
	}
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		all = append(all, fmt.Sprintf("link %d", links.ID))
	}
	if err := links.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// sameObjects waits until the kernel has freed what it frees after a grace period.
func sameObjects(t *testing.T, before []string) {
	t.Helper()
	var now []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if now = kernelObjects(t); slices.Equal(now, before) {
			return
		}
	}
	t.Errorf("left in the kernel:\n%v\nbefore:\n%v", now, before)
}
