package process

import (
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
)

// A deadline that was enough for the graft and that no ungraft can keep, since its swapper is kept for longer each time: the layer comes
// off all the same, at the first request.
func TestDeadlineTooShortForTheUngraft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	mounts := h.mountinfo()
	const deadline = 400 * time.Millisecond
	r.env = []string{failing("swapper ungraft", "stop:stopped"), failpoint.Times + "=2"}
	g := r.inject(h, r.data, "--deadline", deadline.String(), "io error=EIO op=fsync ttl=5m") // nothing has to be moved
	r.env = nil
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 4")
	h.is("EIO", "fsync f")
	cmd, out := r.stopAt("", "recover", g.ID)
	for first := r.swapper; ; {
		time.Sleep(deadline + deadline/2) // how long the target stands still is of the test
		r.goOn(t)
		if r.swapper != first {
			break
		}
		if r.swapper = r.awaitOther(first); r.swapper == 0 {
			t.Fatalf("the ungraft is not tried with another deadline: %v: %s%s", ended(cmd), out, r.logs())
		}
	}
	if err := ended(cmd); err != nil {
		t.Errorf("recover: %v: %s%s", err, out, r.logs())
	}
	h.is("ok", "fsync f")
	h.is("ok 456789", "read f 100")
	if now := h.mountinfo(); now != mounts {
		t.Errorf("mounts:\n%s\nbefore:\n%s", now, mounts)
	}
	if l := r.list(); len(l) > 0 {
		t.Errorf("left: %+v", l)
	}
}
