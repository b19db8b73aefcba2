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
	// released asks until something was let go: an operation that was begun may not have arrived yet.
	released := func(answer <-chan string, want string, args ...string) {
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
	answer := reader.begin("pread f 0 10")
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
	released(answer, "ok 0123456789", g.ID, "--rule", "rule-1")
	released(maker.begin("mkdir %s/d", r.data), "ok", other.ID)
	for _, c := range []struct {
		args []string
		want string
	}{{[]string{g.ID, "--rule", "rule-3"}, "no rule \"rule-3\""}, {[]string{"g-12345678"}, "no such graft"}} {
		if out, err := r.run(append([]string{"release"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("release %q: %q, %v; want %q", c.args, out, err, c.want)
		}
	}
	// What hangs when the graft is taken off goes on too.
	answer = reader.begin("mkdir %s/e", r.data)
	time.Sleep(100 * time.Millisecond)
	r.recover(g)
	if got := <-answer; got != "ok" {
		t.Errorf("after recover: %q", got)
	}
	r.recover(other)
	same(t, before, reader.snapshot())
}

// begin gives a command that may not come to its end; the answer comes later.
func (h *holder) begin(format string, args ...any) <-chan string {
	h.t.Helper()
	command := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(h.in, command); err != nil {
		h.t.Fatalf("%s: the target is gone: %v", command, err)
	}
	answer := make(chan string, 1)
	go func() {
		s, err := h.out.ReadString('\n')
		if err != nil {
			s = err.Error()
		}
		answer <- strings.TrimSpace(s)
	}()
	return answer
}
