package process

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// F4, F12: what fired, what was logged, what is counted and what the program saw are the same number.
func TestCountsAgree(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read p=10% seed=7 ttl=1m")
	const n = 20000
	var ok, eio int
	if _, err := fmt.Sscanf(strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c == ' ' {
			return c
		}
		return ' '
	}, h.ok("spin %s %d read", p, n)), "%d %d", &eio, &ok); err != nil || ok+eio != n {
		t.Fatalf("%d + %d: %v", ok, eio, err)
	}
	// 3 sigma of a binomial with p = 0.1.
	if mean, sigma := 0.1*n, 42.43; float64(eio) < mean-3*sigma || float64(eio) > mean+3*sigma {
		t.Errorf("%d faults of %d at 10 %%", eio, n)
	}
	u := r.recover(g)
	if u.Rules[0].Fired != uint64(eio) || u.Rules[0].Matched != n {
		t.Errorf("counters %+v, the program saw %d of %d", u.Rules[0], eio, n)
	}
	logged := 0
	for _, e := range r.events() {
		if e.Type == keeper.EventFault {
			logged++
			if e.Errno != "EIO" || e.Op != "read" || e.Path != p || e.Rule != "rule" || e.PID == 0 || e.N == 0 || e.Graft != g.ID {
				t.Fatalf("event %+v", e)
			}
		}
	}
	if logged != eio {
		t.Errorf("%d faults in the log, the program saw %d", logged, eio)
	}
}

// events -f shows a fault as it happens.
func TestEventsFollow(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read ttl=1m")
	cmd := r.command("events", "-f")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	h.is("EIO", "cat %s", p)
	found := make(chan string, 1)
	go func() {
		var all strings.Builder
		b := make([]byte, 4096)
		for {
			n, err := out.Read(b)
			all.Write(b[:n])
			if err != nil || strings.Contains(all.String(), "-> EIO") {
				found <- all.String()
				return
			}
		}
	}()
	select {
	case s := <-found:
		if !strings.Contains(s, p) || !strings.Contains(s, g.ID) {
			t.Errorf("events -f: %s", s)
		}
	case <-time.After(20 * time.Second):
		t.Error("events -f shows nothing")
	}
}
