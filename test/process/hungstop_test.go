package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The file system under the path stops to answer while the target stands, in the middle of a graft: the swap is given up and put back while it
// is silent, the target goes on, and when it answers the graft is made.
func TestAttributesHangInMidGraft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fs := r.hungfs(r.data)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 4")
	args := []string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "--deadline", "5s", "io error=EIO op=fsync ttl=5m"}
	cmd, out := r.stopAt("stopped", args...)
	fs.ok("hang attributes")
	r.goOn(t)
	err := ended(cmd)
	for _, want := range []string{"prepare the exchange of descriptor", p, "no answer within", "in statx: request_wait_answer", "nothing was changed"} {
		if err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("inject: %v: %s; want %q%s", err, out.String(), want, r.logs())
		}
	}
	untraced(t, h.pid())
	h.is("ok", "fsync f")
	h.is("ok 456789", "read f 100")
	fs.ok("go")
	h.ok("lseek f 4")
	r.awaitUnmounted(h, time.Minute)
	if out, err := r.run(args...); err != nil {
		t.Fatalf("inject: %q, %v%s", out, err, r.logs())
	}
	h.is("EIO", "fsync f")
	if out, err := r.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	h.is("ok 456789", "read f 100")
	h.stop()
	fs.stop()
}
