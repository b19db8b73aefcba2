package tracer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// What a program changes between the moment in which the swap looks at it and the one in
// which it stands still. Each of these was found by a random program (test/property).

// changing is a target with files at place a.
type changing struct {
	*process
	t    *testing.T
	at   *place
	o    tracer.Options
	kind tracer.Kind
	look func() // see once
}

func newChanging(t *testing.T) *changing {
	t.Helper()
	at := newPlace(t)
	for _, name := range []string{"f", "g"} {
		if err := os.WriteFile(filepath.Join(at.a, name), []byte(strings.Repeat(name, 10000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"d", "other"} {
		if err := os.Mkdir(filepath.Join(at.a, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := &changing{process: told(t), t: t, at: at}
	c.o = newSwapper(t, at, c.pid()).forward()
	match := c.o.Match
	c.o.Match = func(o *tracer.Object) bool {
		ours := match(o)
		if look := c.look; ours && look != nil && o.Kind == c.kind {
			c.look = nil
			look()
		}
		return ours
	}
	return c
}

// once has f done when the swap next asks whether an object is to be swapped, between two looks at it.
func (c *changing) once(kind tracer.Kind, f func()) { c.kind, c.look = kind, f }

// between has f done after the look, before the target is stopped.
func (c *changing) between(f func()) {
	c.o.Step = func(step string) error {
		if step == tracer.StepSeize {
			f()
		}
		return nil
	}
}

// swapped swaps, and checks that nothing is left on the old mount.
func (c *changing) swapped() {
	c.t.Helper()
	swap(c.t, c.o)
	for _, pattern := range []string{"fd/*", "map_files/*", "task/*/cwd"} {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/%s", c.pid(), pattern))
		for _, l := range links {
			var x unix.Statx_t
			if err := unix.Statx(unix.AT_FDCWD, l, 0, unix.STATX_MNT_ID, &x); err == nil && x.Mnt_id == c.at.mntA {
				c.t.Errorf("%s is on the old mount", l)
			}
		}
	}
}

func (c *changing) file(name string) string { return filepath.Join(c.at.a, name) }

// Another file comes into a slot while that is looked at.
func TestSlotChangesWhileLookedAt(t *testing.T) {
	c := newChanging(t)
	c.tells("open 100 %s rdonly", c.file("f"))
	c.tells("open 101 %s rdwr", c.file("g"))
	c.once(tracer.Descriptor, func() { c.tells("dup 101 100") })
	c.swapped()
	if got := c.ask("text 100"); !strings.HasPrefix(got, "text ggg") {
		t.Errorf("the slot has another file: %.10s", got)
	}
}

// A slot is empty for the moment of the look.
func TestSlotIsEmptyWhileLookedAt(t *testing.T) {
	c := newChanging(t)
	c.tells("open 100 %s rdonly", c.file("f"))
	c.tells("open 101 %s rdonly", c.file("g"))
	c.once(tracer.Descriptor, func() { c.tells("close 100") })
	c.between(func() { c.tells("open 100 %s rdonly", c.file("f")) })
	c.swapped()
	if got := c.ask("text 100"); !strings.HasPrefix(got, "text fff") {
		t.Errorf("the slot has another file: %.10s", got)
	}
}

// A slot that had nothing to be swapped gets a duplicate of what is, of the same path.
func TestSlotGetsADuplicateAfterTheLook(t *testing.T) {
	c := newChanging(t)
	c.tells("open 100 %s rdonly", c.file("f"))
	c.tells("open 101 %s rdwr", c.file("f"))
	match := c.o.Match
	c.o.Match = func(o *tracer.Object) bool { return match(o) && o.Flags&unix.O_ACCMODE == unix.O_RDWR }
	c.between(func() { c.tells("dup 101 100") })
	c.swapped()
	r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(c.pid()), uintptr(c.pid()), 0, 100, 101, 0)
	if e != 0 || r != 0 {
		t.Errorf("they are not one description any more: %d, %v", r, e)
	}
}

// The working directory is changed while it is looked at, or is renamed, while its process stands.
func TestDirectoryChangesWhileLookedAt(t *testing.T) {
	for name, change := range map[string]func(c *changing) string{
		"changed": func(c *changing) string {
			c.tells("chdir %s", c.at.a)
			return c.at.b
		},
		"renamed": func(c *changing) string {
			if err := os.Rename(c.file("other"), c.file("e")); err != nil {
				c.t.Fatal(err)
			}
			return filepath.Join(c.at.b, "e")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChanging(t)
			c.tells("chdir %s", c.file("d"))
			want := ""
			look := func() { c.once(tracer.Cwd, func() { want = change(c) }) }
			if name == "changed" {
				look()
			} else { // by somebody else, in the look of the stop
				c.between(func() { c.tells("chdir %s", c.file("other")); look() })
			}
			c.swapped()
			if got := c.ask("getwd"); got != want {
				t.Errorf("it is in %s, not in %s", got, want)
			}
		})
	}
}

// A map is not there in the moment of the look, and is there again in the stop.
func TestMapIsGoneWhileLookedAt(t *testing.T) {
	c := newChanging(t)
	c.tells("open 100 %s rdonly", c.file("f"))
	c.tells("map m 100 1 read shared")
	c.once(tracer.Map, func() { c.tells("unmap m") })
	c.between(func() { c.tells("map m 100 1 read shared") })
	c.swapped()
}

// Memory that may not be read, or is beyond the end of its file, can be locked, and stays
// so; as does what is locked only after the look, and what is not any more.
func TestLockedMapsStayLocked(t *testing.T) {
	locked := func(c *changing, key string) bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", c.pid()))
		if err != nil {
			c.t.Fatal(err)
		}
		_, rest, found := strings.Cut("\n"+string(b), "\n"+c.ask("at %s", key)+"-")
		_, rest, flags := strings.Cut(rest, "VmFlags:")
		line, _, _ := strings.Cut(rest, "\n")
		if !found || !flags {
			c.t.Fatalf("no map %s", key)
		}
		return strings.Contains(line+" ", " lo ")
	}
	for name, change := range map[string]func(c *changing){
		"not readable": func(c *changing) {
			c.tells("map m 100 2 read private")
			c.tells("mlock m")
			c.tells("mprotect m none")
		},
		"beyond the end": func(c *changing) {
			c.tells("map m 100 9 read shared")
			c.tells("mlock m")
		},
		"after the look": func(c *changing) {
			c.tells("map m 100 2 read shared")
			c.between(func() { c.tells("mlock m") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChanging(t)
			c.tells("open 100 %s rdonly", c.file("f"))
			change(c)
			c.swapped()
			if !locked(c, "m") {
				t.Error("the map is not locked any more")
			}
		})
	}
}

// Whether a shared map may become writable is what the file of now says, not one that was
// mapped at the same place before: the kernel keeps the mode of the link in map_files.
func TestMapAtThePlaceOfAnother(t *testing.T) {
	for _, modes := range [][2]string{{"rdonly", "rdwr"}, {"rdwr", "rdonly"}} {
		t.Run(modes[1], func(t *testing.T) {
			c := newChanging(t)
			c.tells("open 100 %s %s", c.file("f"), modes[0])
			c.tells("open 101 %s %s", c.file("f"), modes[1])
			c.tells("map m 100 1 read shared")
			links, err := os.ReadDir(fmt.Sprintf("/proc/%d/map_files", c.pid())) // the kernel makes the link when it is looked at
			if err != nil || len(links) == 0 {
				t.Fatalf("%d links: %v", len(links), err)
			}
			for _, l := range links {
				_, _ = os.Lstat(fmt.Sprintf("/proc/%d/map_files/%s", c.pid(), l.Name()))
			}
			c.tells("map m 101 1 read shared")
			c.swapped()
			got := c.ask("mprotect m write")
			if want := map[string]string{"rdwr": "ok", "rdonly": "permission denied"}[modes[1]]; got != want {
				t.Errorf("writable: %s, not %s", got, want)
			}
		})
	}
}

// A write lock through a descriptor that cannot be read: there is nothing through which
// the process could have a read lock meanwhile, so that the guard is not asked.
func TestLockOfAWriter(t *testing.T) {
	c := newChanging(t)
	c.tells("open 100 %s wronly", c.file("f"))
	c.tells("lock 100")
	asked := 0
	c.o.GuardLocks = func(tracer.LockPhase, []tracer.LockedFile, bool) error { asked++; return nil }
	c.swapped()
	fd, err := unix.Open(c.file("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != unix.EAGAIN {
		t.Errorf("the lock is not there: %v", err)
	}
	if asked != 0 {
		t.Errorf("the guard was asked %d times", asked)
	}
}

// More threads with directories of their own than there is room for code in what is mapped:
// pages are mapped for it, and are gone afterwards.
func TestManyDirectories(t *testing.T) {
	c := newChanging(t)
	executable := func() (n int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", c.pid()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "r-xp")
	}
	c.tells("chdir %s", c.file("d"))
	for range 12 {
		c.tells("apart %s", c.file("d"))
	}
	before, most := executable(), 0
	c.o.Step = func(step string) error {
		if step == tracer.StepCheck {
			most = max(most, executable())
		}
		return nil
	}
	c.swapped()
	if most <= before {
		t.Errorf("%d executable maps before, at most %d: no page was needed", before, most)
	}
	if after := executable(); after != before {
		t.Errorf("%d executable maps before, %d after", before, after)
	}
	if got := c.ask("getwd"); got != filepath.Join(c.at.b, "d") {
		t.Errorf("it is in %s", got)
	}
}
