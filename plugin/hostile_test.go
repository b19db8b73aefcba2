package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// 10,000 rules, labels of a megabyte, and globs that are meant to take long: they are refused, each
// container's with a few words, and a container beside it gets its fault.
func TestHostileLabels(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, &node{}, dir, nil)
	rules, wrong, glob := map[string]string{}, map[string]string{}, map[string]string{}
	for i := range 10000 {
		rules[fmt.Sprintf("r%d.faultgraft.io", i)] = dataRule
		wrong[fmt.Sprintf("r%d.faultgraft.io", i)] = "io error=EIO op=red"
	}
	for i, g := range []string{
		"/" + strings.Repeat("*a", 500), "/" + strings.Repeat("**/", 300) + "x", "/" + strings.Repeat("{a,b}", 200), strings.Repeat("/{a,{b,{c,{d,e}}}}", 50),
		"/[" + strings.Repeat("a-z", 300) + "]*", "/" + strings.Repeat("?*", 400), "/" + strings.Repeat("{", 500), "/" + strings.Repeat("(a+)+", 100),
	} {
		glob[fmt.Sprintf("g%d.faultgraft.io", i)] = "io error=EIO op=read path=" + g
	}
	huge := strings.Repeat("x", 1<<20)
	hostile := map[string]map[string]string{
		"rules": rules, "wrong": wrong, "globs": glob,
		"long":    {"a.faultgraft.io": "io error=EIO op=read path=/" + huge, "b.faultgraft.io": huge, huge + ".faultgraft.io": dataRule, "c.faultgraft.io/" + huge: dataRule},
		"quotes":  {"a.faultgraft.io": `io error=EIO op=read path="` + strings.Repeat(`\"`, 1<<19)},
		"kernel":  {"a.faultgraft.io": "kernel hook=slab error=ENOMEM within=f(" + strings.Repeat("(", 1<<18) + ")"},
		"control": {"a.faultgraft.io": "io \x1b[2J\r\n\x00 error=EIO", "\x1b[31m.faultgraft.io": dataRule},
		"policy":  {"policy.faultgraft.io": strings.Repeat("a,", 1<<19)},
	}
	for name, labels := range hostile {
		c := labelled(name, labels)
		c.PID = startIdle(t, 0)
		b.reg.put(c)
		got := b.settle(t, c.Key)
		if len(got.Problems) == 0 || len(got.Problems) > maxProblems+1 {
			t.Errorf("%s: %s with %d problems", name, got.State, len(got.Problems))
		}
		size := 0
		for _, p := range got.Problems {
			size += len(p)
			if strings.ContainsAny(p, "\x1b\x00\r\n") {
				t.Errorf("%s: %q", name, p)
			}
		}
		if size > 64<<10 {
			t.Errorf("%s: %d bytes of problems, the first %.300q", name, size, got.Problems[0])
		}
	}
	good := labelled("good", map[string]string{"wal.faultgraft.io": dataRule})
	good.PID = startIdle(t, 0)
	b.reg.put(good)
	if got := b.settle(t, good.Key); got.State != StateActive {
		t.Errorf("the container beside them: %s %s", got.State, got.Reason)
	}
	audit := 0
	files, _ := filepath.Glob(filepath.Join(dir, "audit.jsonl*"))
	for _, f := range files {
		if s, err := os.Stat(f); err == nil {
			audit += int(s.Size())
		}
	}
	if audit > 1<<20 {
		t.Errorf("the audit log has %d bytes by now: labels can push out what it holds", audit)
	}
}

// A memory that says that a rule came later than now makes no rule live longer.
func TestMemoryOfTheFutureGivesNoTime(t *testing.T) {
	c := labelled("a", nil)
	r, err := policy.ParseRule("wal", dataRule, policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	memo := applyRule(r, now.Add(1000*time.Hour))
	p := makePlan(&c, []policy.Rule{r}, nil, []appliedRule{memo}, now)
	if len(p.inject) != 1 || p.inject[0].Rules[0].Trigger.TTL > r.Trigger.TTL {
		t.Errorf("plan %+v", p)
	}
}

// FuzzMemory: no file makes the agent fail in another way than by setting it aside, and what was read reads the same again.
func FuzzMemory(f *testing.F) {
	start, err := startTime(os.Getpid())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(fmt.Sprintf(`{"version":1,"tasks":[{"namespace":"n","id":"i","pid":%d,"startTime":%d,"rules":[{"name":"r","text":"t","since":"2026-11-26T00:00:00Z","done":true}]}]}`, os.Getpid(), start)))
	f.Add([]byte(`{"version":1,"tasks":[{"namespace":"../..","id":"/","pid":-1}]}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, memoryFile)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, warning, err := loadMemory(dir, time.Unix(5, 0))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (warning != nil) != os.IsNotExist(err) {
			t.Errorf("set aside: %v; the file: %v", warning, err)
		}
		for k, task := range m.tasks {
			if task.PID != os.Getpid() && task.PID <= 0 {
				t.Errorf("a task with pid %d is remembered", task.PID)
			}
			if err := m.set(k, task.PID, task.StartTime, m.rules(k, task.PID, task.StartTime)); err != nil {
				t.Error(err)
			}
		}
		if _, warning, err := loadMemory(dir, time.Unix(6, 0)); warning != nil || err != nil {
			t.Errorf("what was written cannot be read: %v %v", warning, err)
		}
	})
}
