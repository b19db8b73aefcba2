package process

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// An idle server is small and takes no time of the processor.
func TestIdleServer(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	g := r.inject(h, r.data, "io error=EIO op=read p=0 ttl=5m")
	h.is("ok 0123456789", "pread f 0 10")
	servers := r.processes("server")
	if len(servers) != 1 {
		t.Fatalf("servers %v", servers)
	}
	if kib := rss(t, servers[0]); kib > 25<<10 {
		t.Errorf("VmRSS of the server is %d KiB", kib)
	}
	// what came before may be tidied up first
	for end := time.Now().Add(time.Minute); ; {
		before := ticks(t, servers[0])
		time.Sleep(2 * time.Second)
		used := ticks(t, servers[0]) - before
		if used <= 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d clock ticks of processor time in 2 s, for a minute", used)
		}
	}
	r.recover(g)
}

// rss is VmRSS of proc_pid_status(5), KiB.
func rss(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nVmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// ticks is the processor time of a process, utime and stime of proc_pid_stat(5).
func ticks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')'):]))
	var user, system int
	if _, err := fmt.Sscan(f[12]+" "+f[13], &user, &system); err != nil {
		t.Fatal(err)
	}
	return user + system
}
