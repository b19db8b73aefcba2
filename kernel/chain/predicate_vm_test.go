package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/test/vm"
)

// TestPredicateOnAnyFrame looks a name up that is in no cache: __lookup_slow
// calls d_alloc_parallel, which allocates a dentry.
func TestPredicateOnAnyFrame(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	n := 0
	lookup := func(name string) func() error {
		n++
		fresh := filepath.Join(dir, fmt.Sprint(n)) // a name is looked up once
		if err := os.Mkdir(fresh, 0o700); err != nil {
			t.Fatal(err)
		}
		return func() error {
			err := unix.Access(filepath.Join(fresh, name), unix.F_OK)
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
	}
	const bananas = `name->name == "bananas"`
	for name, w := range map[string]way{"trampolines": {method: State}, "kprobes": {State, true}} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				name   string
				frames []Frame
				want   map[string]uint64 // how often it holds by what is looked up
			}{
				{"the only frame", []Frame{{Function: "d_alloc_parallel", Predicate: bananas}}, map[string]uint64{"bananas": 1, "apples": 0}},
				{"the last frame", []Frame{{Function: "path_lookupat"}, {Function: "d_alloc_parallel", Predicate: bananas + " && parent->d_inode->i_ino > 5"}}, map[string]uint64{"bananas": 1, "apples": 0}},
				{"the last frame, not true", []Frame{{Function: "path_lookupat"}, {Function: "d_alloc_parallel", Predicate: bananas + " && parent->d_inode->i_ino == 0"}}, map[string]uint64{"bananas": 0}},
				{"the first frame", []Frame{{Function: "filename_lookup", Predicate: "flags >= 0 && dfd == -100"}, {Function: "d_alloc_parallel"}}, map[string]uint64{"bananas": 1}},
				{"the first frame, not true", []Frame{{Function: "filename_lookup", Predicate: "dfd == 7"}, {Function: "d_alloc_parallel"}}, map[string]uint64{"bananas": 0}},
				{"each frame", []Frame{{Function: "filename_lookup", Predicate: "dfd < 0"}, {Function: "d_alloc_parallel", Predicate: bananas}}, map[string]uint64{"bananas": 1, "apples": 0}},
				{"KernelChaos's form", []Frame{{Function: "d_alloc_parallel", Predicate: `STRNCMP(name->name, "bananas", 8)`, Parameters: "struct dentry *parent, const struct qstr *name"}}, map[string]uint64{"bananas": 1, "apples": 0}},
			} {
				t.Run(c.name, func(t *testing.T) {
					chain := attached(t, w, c.frames...)
					h := attachHook(t, chain, "kprobe", "__d_alloc")
					for name, held := range c.want {
						for range 2 { // once it was true, it must become false again
							if got := h.during(t, lookup(name)); got != (seen{1, held}) {
								t.Errorf("%s: asked and held %v, want {1 %d}", name, got, held)
							}
						}
					}
				})
			}
		})
	}
}

// TestWrongFrames needs the kernel's types only.
func TestWrongFrames(t *testing.T) {
	vm.Need(t)
	for name, c := range map[string]struct {
		frames []Frame
		hook   string
		method Method
		index  int
		want   string
		column int // of the predicate's error
	}{
		"no such function":        {frames: named("vfs_mkdir", "vfs_raed"), index: 1, want: "did you mean vfs_read"},
		"the hook itself":         {frames: named("vfs_mkdir", "should_failslab"), hook: "should_failslab", index: 1, want: "does not run inside itself"},
		"no such parameter":       {frames: []Frame{{Function: "vfs_read"}, {Function: "d_alloc_parallel", Predicate: "parent != 0 && nome != 0"}}, index: 1, want: "nome", column: 16},
		"no such member":          {frames: []Frame{{Function: "d_alloc_parallel", Predicate: "parent->d_inod->i_ino > 5"}}, want: "d_inod", column: 9},
		"predicate for the stack": {frames: []Frame{{Function: "d_alloc_parallel", Predicate: "parent != 0"}}, method: Stack, want: "the stack does not have the parameters"},
		"parameters that differ":  {frames: []Frame{{Function: "d_alloc_parallel", Predicate: "a != 0", Parameters: "int a"}}, want: "parameter 1 of d_alloc_parallel"},
		"no probe possible":       {frames: named("do_syscall_64"), method: State, want: "no probe"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(Options{Cache: cache, Frames: c.frames, Method: c.method, Hook: []string{c.hook}})
			var wrong *FrameError
			if !errors.As(err, &wrong) || wrong.Index != c.index || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want a FrameError of %d with %q", err, c.index, c.want)
			}
			var place *predicate.Error
			if errors.As(err, &place) != (c.column > 0) || c.column > 0 && place.Column != c.column {
				t.Errorf("%v, want column %d", err, c.column)
			}
		})
	}
}
