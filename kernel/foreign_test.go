package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// What a version kept of a fault is understood by this one; of a later one's, what all have.
func TestMemoOfOtherVersions(t *testing.T) {
	old, err := os.ReadFile("testdata/memo-before-versions.json")
	if err != nil {
		t.Fatal(err)
	}
	p := Pinned{ID: "the folder's name"}
	if err := p.understand(old); err != nil {
		t.Fatal(err)
	}
	if p.ID != "k-0a1b2c3d" || p.Rule.Kernel.Hook.String() != "syscall:mount" || unix.Errno(p.Rule.Kernel.Error) != unix.ENOMEM || p.Rule.Trigger.Times != 10 ||
		p.Cgroup.ID != 4711 || p.Backend != "override" || p.memo.Handle != 77 || p.Ends.Sub(p.Started).Round(time.Second) != 30*time.Minute {
		t.Errorf("%+v", p)
	}
	later := bytes.Replace(old, []byte(`{"fault":`), []byte(`{"version":99,"fault":`), 1)
	later = bytes.Replace(later, []byte(`"error":"ENOMEM"`), []byte(`"error":{"name":"ENOMEM","p":1}`), 1)
	p = Pinned{ID: "the folder's name"}
	err = p.understand(later)
	if err == nil || !strings.Contains(err.Error(), "later version") {
		t.Errorf("a memo of version 99: %v", err)
	}
	if p.ID != "k-0a1b2c3d" || p.Cgroup.Path != "/default/abc" || p.Ends.Sub(p.Started).Round(time.Second) != 30*time.Minute {
		t.Errorf("of version 99: %+v", p)
	}
	if p = (Pinned{ID: "k-1"}); p.understand([]byte("{")) == nil || p.ID != "k-1" || !p.Expired() {
		t.Errorf("of what is no memo: %+v", p)
	}
}

// A fault that a later version pinned is listed, not taken over, hides no other, goes on, and can be ended.
func TestOutliveOfALaterVersion(t *testing.T) {
	vm.Need(t)
	before := kernelObjects(t)
	pins := filepath.Join("/sys/fs/bpf", "faultgraft-test-foreign")
	t.Cleanup(func() { _ = os.Remove(pins) })
	c := testCgroup(t, "/foreign")
	held(t, c, "hold 3600 "+c.Path+" "+pins)()

	memo := filepath.Join(pins, "held", pinMemo)
	kept, err := ebpf.LoadPinnedMap(memo, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := kept.LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"version":1,`)) {
		t.Fatalf("the memo has no version: %s", text)
	}
	if err := kept.Put(uint32(0), bytes.Replace(text, []byte(`"version":1,`), []byte(`"version":9,`), 1)); err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	// One of which nothing can be read is beside it.
	if err := os.Mkdir(filepath.Join(pins, "k-torn"), 0o700); err != nil {
		t.Fatal(err)
	}

	found, err := Outliving(pins)
	if err != nil || len(found) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	p, torn := found[0], found[1]
	if p.ID != "held" || p.Foreign == nil || p.Expired() || p.Cgroup.ID != c.ID || time.Until(p.Ends) < 50*time.Minute {
		t.Errorf("of a later version: %+v", p)
	}
	if torn.ID != "k-torn" || !torn.Expired() {
		t.Errorf("not whole: %+v", torn)
	}
	in, err := New(Options{PinDir: pins})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Adopt(p); !errors.Is(err, p.Foreign) {
		t.Errorf("taken over: %v", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, c, "mount", unix.ENOMEM)
	for _, p := range found {
		if err := p.End(); err != nil {
			t.Error(err)
		}
	}
	want(t, c, "mount", 0)
	sameObjects(t, before)
}
