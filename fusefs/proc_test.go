package fusefs

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that has sent a request and waits for a processor, on a busy machine, is in no
// system call for the time being: it is waited for.
func TestCallOfAThreadThatRuns(t *testing.T) {
	tid, end := make(chan int, 1), make(chan struct{})
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		defer close(end)
		tid <- unix.Gettid()
		for begun := time.Now(); time.Since(begun) < 100*time.Millisecond; {
		}
		_, _ = unix.Read(pipe[0], make([]byte, 1)) // its end
	}()
	thread := uint32(<-tid)
	c, ok := callOf(thread)
	// Go's runtime may have put it to sleep on its way (a futex, for a garbage collection).
	for deadline := time.Now().Add(time.Minute); ok && c.nr != unix.SYS_READ && time.Now().Before(deadline); {
		c, ok = callOf(thread)
	}
	if !ok || c.nr != unix.SYS_READ || c.args[0] != uint64(pipe[0]) {
		t.Errorf("it is in %+v, %v", c, ok)
	}
	for _, fd := range []int{pipe[1], pipe[0]} {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		if fd == pipe[1] {
			<-end
		}
	}
}

// FuzzProc: what proc(5) tells of a caller, whose name and groups are its own choice, is understood or not believed.
func FuzzProc(f *testing.F) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("0 0x3 0x7ffd 0x400 0x0 0x0 0x0 0x7ffe 0x7fff\n", string(status), "2045 1024 300 0 0 120 0\n")
	f.Add("-1 0x7ffe 0x7fff", "Name:\tGroups: 7\nGroups:\t1 2 4294967296 -1\nCapEff:\tffffffffffffffffff\n", "1 0 0 0 0 0 0")
	f.Add("-1 1 2 3 4 5 6 7 8", "CapEff:\n", "1 0 0 0")
	f.Add("running", "CapEff:\n", "")
	f.Fuzz(func(t *testing.T, call, status, statm string) {
		words := strings.Fields(call)
		if c, ok := parseCall(words); ok {
			text := []string{strconv.Itoa(c.nr)}
			for _, a := range c.args {
				text = append(text, strconv.FormatUint(a, 10))
			}
			if again, ok := parseCall(text); !ok || again != c || c.nr < 0 {
				t.Errorf("%q is %+v, and that %+v", call, c, again)
			}
		}
		for _, g := range parseGroups(lineOf(status, "Groups:")) {
			if !strings.Contains(status, strconv.FormatUint(uint64(g), 10)) {
				t.Errorf("group %d of %q", g, status)
			}
		}
		if effective := lineOf(status, "CapEff:"); len(effective) == 0 && !lacking(effective, unix.CAP_SYS_RESOURCE) {
			t.Errorf("a capability is there by %q", status)
		}
		if withoutProgram(statm) && len(strings.Fields(statm)) < 4 {
			t.Errorf("%q tells of a program", statm)
		}
	})
}
