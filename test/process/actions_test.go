package process

import (
	"testing"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// F12: every kind of fault reaches a file that was open before the graft, and
// is in the log as often as the program met it and the counters say.
func TestEveryActionIsLogged(t *testing.T) {
	r := newRig(t)
	h := r.start()
	const content = "0123456789"
	names := []string{"error", "latency", "throttle", "short", "corrupt", "torn", "lost", "nospace", "quota", "attr"}
	at := map[string]string{}
	for _, n := range names {
		at[n] = r.write(n, content)
		h.ok("open %s %s rdwr", n, at[n])
	}
	var rules []string
	for _, what := range []string{
		"error=EIO:1,ESTALE:1 op=read", "latency=uniform(1ms,2ms) op=read", "throttle=1000ops/s op=read", "short=3 op=read", "corrupt=bitflip op=read",
		"torn=prefix(4096) op=write", "lost op=write+fsync", "nospace=5", "quota=0", "attr=size:99",
	} {
		rules = append(rules, "io "+what+" ttl=1m seed=3 path="+at[names[len(rules)]])
	}
	g := r.inject(h, r.data, rules...)
	if got := h.do("pread error 0 10"); got != "EIO" && got != "ESTALE" {
		t.Errorf("error: %s", got)
	}
	h.is("ok "+content, "pread latency 0 10")
	h.is("ok "+content, "pread throttle 0 10")
	h.is("ok 012", "pread short 0 10")
	if got := h.ok("pread corrupt 0 10"); got == content || len(got) != len(content) {
		t.Errorf("corrupt: %s", got)
	}
	h.is("ok 4", "pwrite torn 0 ABCD") // within one unit: nothing of it
	h.is("ok 4", "pwrite lost 0 ABCD")
	h.ok("fsync lost")
	h.is("ok 5", "pwrite nospace 10 abcdefgh")
	h.is("ENOSPC", "pwrite nospace 15 fgh")
	h.is("EDQUOT", "pwrite quota 10 a")
	h.is("ok 2", "pwrite quota 3 XY") // over what is there
	h.is("ok 99", "stat %s", at["attr"])
	met := map[string]int{"error": 1, "latency": 1, "throttle": 1, "short": 1, "corrupt": 1, "torn": 1, "lost": 2, "nospace": 2, "quota": 1, "attr": 1}
	u := r.recover(g)
	for i, n := range names {
		if got := u.Rules[i].Fired; got != uint64(met[n]) {
			t.Errorf("the rule for %s fired %d times, the program met it %d times", n, got, met[n])
		}
	}
	logged := map[string]int{}
	for _, e := range r.events() {
		if e.Type == keeper.EventFault {
			logged[e.Action]++
			if e.Path != at[e.Action] || e.PID == 0 || e.N == 0 {
				t.Errorf("event %+v", e)
			}
		}
	}
	for _, n := range names {
		if logged[n] != met[n] {
			t.Errorf("%d events of %s, the program met it %d times", logged[n], n, met[n])
		}
	}
	for n, want := range map[string]string{"corrupt": content, "torn": content, "lost": content, "nospace": content + "abcde", "quota": "012XY56789", "attr": content} {
		h.is("ok "+want, "cat %s", at[n])
	}
	h.is("ok 10", "stat %s", at["attr"])
}
