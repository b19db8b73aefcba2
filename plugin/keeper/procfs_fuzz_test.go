package keeper

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// FuzzThreadGroup: the status of a process, whose name is its own choice, tells its thread group or nothing.
func FuzzThreadGroup(f *testing.F) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("Name:\tTgid:\t7\nTgid:\t-1\nTgid:\t8\n"))
	f.Add([]byte("\nTgid:\t"))
	f.Fuzz(func(t *testing.T, status []byte) {
		if tgid, ok := threadGroupIn(status); ok && (tgid <= 0 || !regexp.MustCompile(`\nTgid:\t\+?0*`+strconv.Itoa(tgid)+`(\n|$)`).Match(status)) {
			t.Errorf("thread group %d by %q", tgid, status)
		}
	})
}

// FuzzReadOnlyMaps: no more is given back than what a line says that maps the file and cannot be written to.
func FuzzReadOnlyMaps(f *testing.F) {
	own, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own), "[vdso]")
	f.Add("400000-500000 r-xp 00000000 08:01 12 /usr/bin/a b\n500000-501000 rw-p 00100000 08:01 12 /usr/bin/a b\n", "/usr/bin/a b")
	f.Add("500000-400000 r--p 0 0 0 /x\n", "/x")
	f.Add("-1-7 r--p 0 0 0 /x", "/x")
	f.Fuzz(func(t *testing.T, maps, file string) {
		all, err := readOnlyMaps(maps, file)
		if err != nil && all != nil {
			t.Errorf("maps beside %v", err)
		}
		for _, m := range all {
			if m.start >= m.end {
				t.Errorf("%x-%x of %q", m.start, m.end, maps)
			}
		}
		if len(all) > strings.Count("\n"+maps, "\n") {
			t.Errorf("%d maps of %q", len(all), maps)
		}
	})
}

// FuzzFlockOf: what proc_locks(5) says of an inode is about that one, and names a process.
func FuzzFlockOf(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 12 00:2c:1234 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 13 00:2c:1234 0 EOF\n2: POSIX  ADVISORY  READ 14 00:2c:1234 0 EOF\n", "00:2c:1234")
	f.Add("1: FLOCK ADVISORY WRITE 0 00:2c:1 0 EOF\n2: FLOCK ADVISORY WRITE -3 00:2c:1\n3: FLOCK", "00:2c:1")
	f.Fuzz(func(t *testing.T, locks, inode string) {
		pid, ok := flockOf(locks, inode)
		if ok && (pid <= 0 || !strings.Contains(locks, inode)) {
			t.Errorf("process %d has a lock on %q by %q", pid, inode, locks)
		}
		if regexp.MustCompile(`^[0-9a-f]+:[0-9a-f]+:[0-9]+$`).MatchString(inode) {
			line := fmt.Sprintf("1: FLOCK  ADVISORY  WRITE 4711 %s 0 EOF\n", inode)
			if pid, ok := flockOf(line+locks, inode); !ok || pid != 4711 {
				t.Errorf("process %d, %v instead of 4711", pid, ok)
			}
		}
	})
}

// FuzzEstate has any memory for what a server left: it is read as it was written, or refused whole.
func FuzzEstate(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"layers":[{}]}`, `{"layers":[{"call":{"layer":"../../x"},"server":-1,"state":[-1],"keep":[1,2,3]}],"servers":[{"pid":-1}]}`, `{"target":{"pid":1}}x`, `{"target":[]}`} {
		f.Add(uint64(len(s)), []byte(s))
		f.Add(uint64(len(s))|estateSecond, []byte(s))
		f.Add(estateSecond|uint64(estateRoom+1+len(s)), []byte(s))
	}
	f.Fuzz(func(t *testing.T, current uint64, text []byte) {
		e, err := newEstateFile()
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()
		copy(e.room(current&estateSecond), text)
		e.head().current.Store(current)
		got, err := e.read()
		if err != nil {
			if got.Layers != nil || got.Servers != nil || got.Target.PID != 0 {
				t.Errorf("%+v beside %v", got, err)
			}
			return
		}
		for _, l := range got.Layers {
			_ = l.Keep[0]
			if got.layer(l.Call.Layer) == nil {
				t.Errorf("the layer of %q is not found", l.Call.Layer)
			}
		}
		if err := e.write(got); err != nil {
			t.Fatal(err)
		}
		first := bytes.Clone(e.room(e.head().current.Load() & estateSecond)[:e.head().current.Load()&^estateSecond])
		again, err := e.read()
		if err == nil {
			err = e.write(again)
		}
		if second := e.room(e.head().current.Load() & estateSecond)[:len(first)]; err != nil || !bytes.Equal(first, second) {
			t.Errorf("%q reads as %q (%v)", first, second, err)
		}
	})
}
