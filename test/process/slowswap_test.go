package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// silence is how long a swapper may come no further in these tests, instead of a minute.
const silence = 4 * time.Second

func (r *rig) shortSilence() {
	r.env = append(r.env, fmt.Sprintf("FAULTGRAFT_TEST_SWAPPER_SILENCE=%v", silence))
}

// A graft that takes much longer than a swapper may be silent, because the file system under it is slow, is made: its swapper comes on.
func TestSlowSwapperGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.shortSilence()
	fs := r.hungfs(r.data)
	const files = 20
	h := r.start()
	for i := range files {
		h.ok("open f%d %s rdwr", i, r.write(fmt.Sprint("f", i), "0123456789"))
	}
	fs.ok("slow lookups")
	begun := time.Now()
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
	if err != nil {
		t.Fatalf("inject: %q, %v%s", out, err, r.logs())
	}
	if took := time.Since(begun); took < silence {
		t.Fatalf("it took %v, which shows nothing", took)
	}
	fs.ok("go")
	for i := range files {
		h.is("EIO", "fsync f%d", i)
	}
	if out, err := r.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	h.is("ok", "fsync f0")
	h.stop()
	fs.stop()
}

// A file system that takes its time for each close, but answers, does not fail an exchange by how many files there are. Descriptors in a row are closed
// and filled again, those far apart are exchanged one by one.
func TestSlowClosesAreWaitedFor(t *testing.T) {
	t.Parallel()
	const files = 30
	for name, first := range map[string]int{"in a row": 10, "far apart": 1000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			fs := r.hungfs(r.data)
			step := 1 + first/100
			script := ""
			for i := range files {
				script += fmt.Sprintf("exec %d<>%s; ", first+i*step, r.write(fmt.Sprint("f", i), "0123456789"))
			}
			h := r.startWith("unshare", "--mount", "--propagation", "private", "bash", "-c", script+"exec "+binaries.holder)
			fs.ok("slow closes")
			out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "-o", "json", "io error=EIO op=fsync ttl=5m")
			fs.ok("go")
			if err != nil {
				t.Fatalf("inject: %q, %v%s", out, err, r.logs())
			}
			if n := strings.Count(out, `"kind": "descriptor"`); n != files {
				t.Errorf("%d of %d files were moved: %s", n, files, out)
			}
			if out, err := r.run("recover", "--all"); err != nil {
				t.Errorf("recover: %q, %v", out, err)
			}
			h.stop()
			fs.stop()
		})
	}
}

// One that hangs before the target is stopped is ended, and nothing is changed.
func TestHungSwapperIsEnded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.shortSilence()
	fs := r.hungfs(r.data)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	cmd, out := r.stopAt("replace", "inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
	fs.ok("hang attributes")
	r.goOn(t)
	err := ended(cmd)
	for _, want := range []string{fmt.Sprintf("came no further for %v", silence), "nothing is changed"} {
		if err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("inject: %v: %s; want %q%s", err, out.String(), want, r.logs())
		}
	}
	untraced(t, h.pid())
	fs.ok("go")
	h.is("ok 0123456789", "read f 100")
	h.is("ok", "fsync f")
	r.awaitUnmounted(h, time.Minute)
	if out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m"); err != nil {
		t.Fatalf("inject: %q, %v%s", out, err, r.logs())
	}
	h.is("EIO", "fsync f")
	if out, err := r.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	h.stop()
	fs.stop()
}
