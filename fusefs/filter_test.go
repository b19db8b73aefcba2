package fusefs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// opens lets a process of its own open the file f; it reports whether that failed.
func (b *bench) opens(attr *syscall.SysProcAttr, program, name string) bool {
	b.Helper()
	cmd := exec.Command(program, name)
	cmd.Env, cmd.SysProcAttr = []string{}, attr
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		b.Fatalf("%s: %v %s", program, err, out)
	}
	return err != nil
}

// F2: comm, exe, uid and pid are those of the thread that calls, as its container has them.
func TestCallerFilters(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	must(t, os.Chmod(b.under(""), 0o755))
	cat, err := exec.LookPath("cat")
	must(t, err)
	cat, err = filepath.EvalSymlinks(cat)
	must(t, err)
	other := filepath.Join(t.TempDir(), "other program")
	data, err := os.ReadFile(cat)
	must(t, err)
	must(t, os.WriteFile(other, data, 0o755))
	// A root of its own, with what is mounted below it.
	jail := t.TempDir()
	must(t, unix.Mount("/", jail, "", unix.MS_BIND|unix.MS_REC, ""))
	must(t, unix.Mount("", jail, "", unix.MS_REC|unix.MS_PRIVATE, ""))
	t.Cleanup(func() { _ = unix.Unmount(jail, unix.MNT_DETACH) })

	newPID := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	asUser := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
	inJail := &syscall.SysProcAttr{Chroot: jail}
	for _, c := range []struct {
		name    string
		caller  policy.Caller
		attr    *syscall.SysProcAttr
		program string
		fails   bool
	}{
		{"comm", policy.Caller{Comm: []string{"no", "ca?"}}, nil, cat, true},
		{"comm of another", policy.Caller{Comm: []string{"cat"}}, nil, other, false},
		{"comm is cut at 15 bytes, the name is not", policy.Caller{Comm: []string{"other program"}}, nil, other, true},
		{"exe", policy.Caller{Exe: []string{cat}}, nil, cat, true},
		{"exe of another", policy.Caller{Exe: []string{cat}}, nil, other, false},
		{"exe by glob", policy.Caller{Exe: []string{"/**/other*"}}, nil, other, true},
		{"exe in a root of its own", policy.Caller{Exe: []string{cat}}, inJail, cat, true},
		{"exe as only the host sees it", policy.Caller{Exe: []string{jail + cat}}, inJail, cat, false},
		{"uid", policy.Caller{UID: []policy.Range{{From: 1000, To: 2000}}}, asUser, cat, true},
		{"uid of another", policy.Caller{UID: []policy.Range{{From: 1000, To: 2000}}}, nil, cat, false},
		{"pid in its namespace", policy.Caller{PID: []policy.Range{{From: 1, To: 1}}}, newPID, cat, true},
		{"pid of the host", policy.Caller{PID: []policy.Range{{From: 2, To: 1 << 30}}}, newPID, cat, false},
		{"pid of another", policy.Caller{PID: []policy.Range{{From: 1, To: 1}}}, nil, cat, false},
		{"all of them", policy.Caller{Comm: []string{"cat"}, Exe: []string{cat}, UID: []policy.Range{{}}, PID: []policy.Range{{From: 1, To: 1}}}, newPID, cat, true},
		{"all but one", policy.Caller{Comm: []string{"cat"}, Exe: []string{cat}, UID: []policy.Range{{From: 1, To: 9}}, PID: []policy.Range{{From: 1, To: 1}}}, newPID, cat, false},
	} {
		b.faults() // an equal rule would go on counting
		b.faults(fault(t, "open", policy.IOFault{Path: "/data/f", Caller: c.caller, Errors: eio()}))
		name := b.path("f")
		if got := b.opens(c.attr, c.program, name); got != c.fails {
			t.Errorf("%s: open failed: %v, want %v", c.name, got, c.fails)
		}
		if s := b.Rules()[0]; (s.Matched == 1) != c.fails {
			t.Errorf("%s: %d operations matched", c.name, s.Matched)
		}
	}

	// The name of a thread can change at any time.
	b.faults(fault(t, "open", policy.IOFault{Caller: policy.Caller{Comm: []string{"walwriter"}}, Errors: eio()}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // ends with its thread, whose name it changes
		for _, c := range []struct {
			name  string
			fails bool
		}{{"reader", false}, {"walwriter", true}, {"reader", false}} {
			p := append([]byte(c.name), 0)
			if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&p[0])), 0, 0, 0); err != nil {
				t.Error(err)
			}
			if err := openClose(b.path("f"), unix.O_RDONLY, 0); (err == unix.EIO) != c.fails {
				t.Errorf("as %s: %v", c.name, err)
			}
		}
	}()
	<-done

	// What the kernel does by itself is nobody's.
	fd := b.open("f", unix.O_RDWR)
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }()
	b.faults(fault(t, "mmap-write", policy.IOFault{Caller: policy.Caller{UID: []policy.Range{{To: 1 << 31}}}, Errors: eio()}))
	must(t, poke(mem, 'X'))
	must(t, unix.Msync(mem, unix.MS_SYNC))
	if s := b.Rules()[0]; s.Matched != 0 {
		t.Error("write-back matched a filter of callers")
	}
}

// F2: offset and size, exact at both ends.
func TestRequestFilters(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", string(make([]byte, 1<<16)))
	fd := b.open("f", unix.O_RDWR)
	for _, c := range []struct {
		offset, size *policy.Range
		at, n        int64
		fails        bool
	}{
		{&policy.Range{From: 4096, To: 8191}, nil, 0, 4096, false},
		{&policy.Range{From: 4096, To: 8191}, nil, 0, 4097, true},
		{&policy.Range{From: 4096, To: 8191}, nil, 8191, 1, true},
		{&policy.Range{From: 4096, To: 8191}, nil, 8192, 1, false},
		{&policy.Range{From: 4096, To: 8191}, nil, 0, 1 << 16, true},
		{nil, &policy.Range{From: 100, To: 200}, 0, 99, false},
		{nil, &policy.Range{From: 100, To: 200}, 0, 100, true},
		{nil, &policy.Range{From: 100, To: 200}, 0, 200, true},
		{nil, &policy.Range{From: 100, To: 200}, 0, 201, false},
		{&policy.Range{From: 0, To: 0}, &policy.Range{From: 1, To: 10}, 0, 5, true},
		{&policy.Range{From: 0, To: 0}, &policy.Range{From: 1, To: 10}, 1, 5, false},
	} {
		b.faults(fault(t, "read+write", policy.IOFault{Offset: c.offset, Size: c.size, Errors: eio()}))
		_, rerr := unix.Pread(fd, make([]byte, c.n), c.at)
		_, werr := unix.Pwrite(fd, make([]byte, c.n), c.at)
		if (rerr == unix.EIO) != c.fails || (werr == unix.EIO) != c.fails {
			t.Errorf("offset %v size %v: %d bytes at %d: %v, %v", c.offset, c.size, c.n, c.at, rerr, werr)
		}
	}
}

// F2: afterBytes counts what reads and writes move; delay and pulses count from the activation.
func TestTriggersOfBytesAndTime(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", string(make([]byte, 1<<16)))
	fd := b.open("f", unix.O_RDWR)
	r := fault(t, "read+fsync", policy.IOFault{Errors: eio()})
	r.Trigger.AfterBytes = 1000
	b.faults(r)
	got := ""
	for _, n := range []int{400, 400, 0, 200, 1, 400} {
		var err error
		if n == 0 {
			err = unix.Fsync(fd)
		} else {
			_, err = unix.Pread(fd, make([]byte, n), 0)
		}
		got += fmt.Sprint(err == unix.EIO, " ")
	}
	if got != "false false false false true true " {
		t.Error(got)
	}
	if e := b.recorded(); len(e) != 2 || e[0].N != 1 {
		t.Errorf("%+v", e)
	}

	r = fault(t, "read", policy.IOFault{Errors: eio()})
	r.Trigger.Delay, r.Trigger.Active, r.Trigger.Idle, r.Trigger.TTL = time.Hour, 10*time.Minute, 20*time.Minute, 24*time.Hour
	for age, want := range map[time.Duration]string{
		0: "0", 59 * time.Minute: "0", 61 * time.Minute: "1", 69 * time.Minute: "1", 71 * time.Minute: "0",
		89 * time.Minute: "0", 91 * time.Minute: "1", 23 * time.Hour: "1", 25 * time.Hour: "0",
	} {
		must(t, b.SetRules(nil, time.Now()))
		must(t, b.SetRules([]policy.Rule{r}, time.Now().Add(-age)))
		if got := pattern(t, fd, 1); got != want {
			t.Errorf("%v after its activation: %s, want %s", age, got, want)
		}
	}
	// A rule at rest still keeps the kernel from caching what it will act on.
	r = fault(t, "getattr", policy.IOFault{Path: "/data/f", Errors: eio()})
	r.Trigger.Delay = 300 * time.Millisecond
	var st unix.Stat_t
	start := time.Now() // the delay is not over 300 ms after this, however long what follows takes
	b.faults(r)
	active := time.Now()
	for time.Since(start) < 250*time.Millisecond { // caches last longer than the rest of the delay
		if err := unix.Stat(b.path("f"), &st); err != nil && time.Since(start) < 300*time.Millisecond {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(active.Add(320 * time.Millisecond)))
	if err := unix.Stat(b.path("f"), &st); err != unix.EIO {
		t.Errorf("after the delay: %v", err)
	}
}
