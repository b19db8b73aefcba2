package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// release lets hanging operations go on, those of one rule or all, and says how many.
func TestReleaseHangingOperations(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	reader, maker := r.start(), r.start()
	reader.ok("open f %s rdwr", p)
	before := reader.snapshot()
	// One target for each, since a holder does one thing at a time.
	g := r.inject(reader, r.data, "io hang op=read ttl=5m", "io hang op=mkdir ttl=5m")
	other := r.inject(maker, r.data, "io hang op=mkdir ttl=5m")
	answer := make(chan string, 2)
	hang := func(h *holder, command string) {
		if _, err := fmt.Fprintln(h.in, command); err != nil {
			t.Fatal(err)
		}
		go func() { s, _ := h.out.ReadString('\n'); answer <- strings.TrimSpace(s) }()
	}
	// released asks until something was let go: an operation that was begun may not have arrived yet.
	released := func(want string, args ...string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			out, err := r.run(append([]string{"release"}, args...)...)
			if err != nil {
				t.Fatalf("release: %v%s", err, r.logs())
			}
			if out == "released 1 operation" {
				break
			}
			if out != "released 0 operations" || time.Now().After(end) {
				t.Fatalf("release: %q", out)
			}
		}
		if got := <-answer; got != want {
			t.Errorf("the operation went on to %q, want %q", got, want)
		}
	}
	hang(reader, "pread f 0 10")
	for _, args := range [][]string{{other.ID}, {g.ID, "--rule", "rule-2"}} {
		if out, err := r.run(append([]string{"release"}, args...)...); err != nil || out != "released 0 operations" {
			t.Errorf("release %q: %q, %v", args, out, err)
		}
	}
	select {
	case got := <-answer:
		t.Fatalf("the read did not hang: %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	released("ok 0123456789", g.ID, "--rule", "rule-1")
	hang(maker, "mkdir "+r.data+"/d")
	released("ok", other.ID)
	for _, c := range []struct {
		args []string
		want string
	}{{[]string{g.ID, "--rule", "rule-3"}, "no rule \"rule-3\""}, {[]string{"g-12345678"}, "no such graft"}} {
		if out, err := r.run(append([]string{"release"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("release %q: %q, %v; want %q", c.args, out, err, c.want)
		}
	}
	// What hangs when the graft is taken off goes on too.
	hang(reader, "mkdir "+r.data+"/e")
	time.Sleep(100 * time.Millisecond)
	r.recover(g)
	if got := <-answer; got != "ok" {
		t.Errorf("after recover: %q", got)
	}
	r.recover(other)
	same(t, before, reader.snapshot())
}
