package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// top works where standard output is no terminal; shells complete the ids of what is there.
func TestTopAndCompletion(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	if _, err := r.run("top", "--once"); err == nil || !strings.Contains(err.Error(), "no faultgraft agent") {
		t.Errorf("without an agent: %v", err)
	}
	r.agent()
	g := r.inject(h, r.data, "io error=EIO op=read times=7 ttl=5m")
	h.spun(p, 20, "read", "EIO")
	var out string
	for end := time.Now().Add(20 * time.Second); ; { // on a busy machine a table does not wait for a keeper
		var err error
		out, err = r.run("top", "-n", "2", "--interval", "100ms")
		if err != nil || strings.Count(out, "HITS/S") != 2 || strings.Contains(out, "\x1b") {
			t.Fatalf("%v: %s", err, out)
		}
		found := false
		for _, l := range strings.Split(out, "\n") {
			f := strings.Fields(l)
			found = found || len(f) == 9 && f[0] == fmt.Sprintf("pid-%d", h.pid()) && f[2] == "active" && f[6] == "7"
		}
		if found {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no row with 7 hits: %s", out)
		}
	}
	for _, command := range []string{"recover", "show", "update"} {
		for end := time.Now().Add(20 * time.Second); ; { // a shell does not wait long for names
			out, err := r.run("__complete", command, "")
			if err == nil && strings.Contains(out, g.ID+"\t") {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: %v %q", command, err, out)
				break
			}
		}
	}
}
