package process

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// fakeLayer is a FUSE file system of a container that looks like a layer. Its server shows one folder in another, until it hangs.
type fakeLayer struct {
	h      *holder
	device int
	point  string
	hangs  atomic.Bool
	asked  atomic.Int64
}

const likeOurs = "allow_other,default_permissions"

// fake mounts one in the target. Somebody reads its requests if served says so.
func (h *holder) fake(id, point, options string, served bool) *fakeLayer {
	h.t.Helper()
	if err := os.MkdirAll(point, 0o755); err != nil {
		h.t.Fatal(err)
	}
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	f := &fakeLayer{h: h, device: device, point: point}
	h.within(func() error {
		return unix.Mount(id, point, "fuse.faultgraft", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", device, options))
	})
	h.t.Cleanup(f.end)
	if served {
		go f.serve()
	}
	return f
}

// end has the kernel end the connection: whoever waits goes on.
func (f *fakeLayer) end() {
	if f.device < 0 {
		return
	}
	f.h.within(func() error { return unix.Unmount(f.point, unix.MNT_FORCE|unix.MNT_DETACH) })
	_ = unix.Close(f.device)
	f.device = -1
}

// serve speaks as much of the protocol as is asked for (include/uapi/linux/fuse.h).
func (f *fakeLayer) serve() {
	device := f.device
	order := binary.LittleEndian
	attr := func(ino uint64) []byte {
		b := order.AppendUint64(nil, ino)
		b = append(b, make([]byte, 52)...)
		b = order.AppendUint32(b, unix.S_IFDIR|0o755)
		b = order.AppendUint32(b, 2)
		return append(b, make([]byte, 20)...)
	}
	in := make([]byte, 1<<18)
	for {
		n, err := unix.Read(device, in)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		op, unique, node, pid := order.Uint32(in[4:]), in[8:16], order.Uint64(in[16:]), order.Uint32(in[32:])
		failed := int32(0)
		var body []byte
		switch op {
		case 26: // FUSE_INIT
			body = make([]byte, 64)
			order.PutUint32(body, 7)
			order.PutUint32(body[4:], 31)
			order.PutUint32(body[20:], 1<<17)
		case 2, 36, 42: // FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET
			continue
		case 1: // FUSE_LOOKUP
			body = append(append(order.AppendUint64(nil, node+1), make([]byte, 32)...), attr(node+1)...)
		case 3: // FUSE_GETATTR
			body = append(make([]byte, 16), attr(node)...)
		default:
			failed = -int32(unix.ENOSYS)
		}
		if op != 26 {
			f.asked.Add(1)
			switch {
			case f.hangs.Load() && pid != 0:
				continue
			case f.hangs.Load(): // somebody of the machine who is not of this test
				body, failed = nil, -int32(unix.EIO)
			}
		}
		out := order.AppendUint32(nil, uint32(16+len(body)))
		out = append(order.AppendUint32(out, uint32(failed)), unique...)
		_, _ = unix.Write(device, append(out, body...)) // who asked may have gone
	}
}

// What a container makes to look like layers, and never answers, or only up to a point, keeps nobody from taking off what is really dead: it is told of, and left alone.
func TestFakeLayersThatHang(t *testing.T) {
	r := newRig(t)
	o := r.startFaulted("10m")
	hostile := r.start()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	var fakes []*fakeLayer
	named := []string{at("hangs"), at("beside"), at("way/d")}
	fakes = append(fakes, hostile.fake("g-0000000a", at("hangs"), likeOurs, true), o.fake("g-0000000b", at("beside"), likeOurs, true))
	for i := range 3 {
		named = append(named, at(fmt.Sprint("unread", i)))
		fakes = append(fakes, hostile.fake(fmt.Sprintf("g-0000001%d", i), named[len(named)-1], likeOurs, false))
	}
	// One is dead, and the way to it leads over another that hangs.
	way := hostile.fake("not of a graft", at("way"), likeOurs, true)
	dead := 0
	hostile.within(func() (err error) {
		if dead, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Mount("g-0000000c", at("way/d"), "fuse.faultgraft", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", dead, likeOurs))
	})
	_ = unix.Close(dead)
	// These are not even asked.
	others := []*fakeLayer{hostile.fake("g-1234567x", at("other id"), likeOurs, true), hostile.fake("g-0000000d", at("other options"), "allow_other", true)}
	fakes = append(fakes, way)
	for _, f := range append(fakes, others...) {
		f.hangs.Store(true)
	}
	r.killAll(o.graft)
	for end := time.Now().Add(30 * time.Second); o.do("stat %s", o.file) != "ENOTCONN"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the layer is served on")
		}
	}
	recovers := func(args ...string) (out string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cmd := r.command(args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		done := make(chan error, 1)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%q: %v: %s", args, err, &stderr)
			}
		case <-time.After(time.Minute):
			t.Errorf("%q does not end", args)
			for _, f := range append(fakes, others...) {
				f.end()
			}
			t.Logf("freed, it ends with %v", <-done)
		}
		for _, n := range named {
			if strings.Count(stderr.String(), fmt.Sprintf("over %q of process", n)) != 1 {
				t.Errorf("%q says nothing of %s: %s", args, n, &stderr)
			}
		}
		if strings.Contains(stderr.String(), "other ") {
			t.Errorf("%q speaks of what is no layer: %s", args, &stderr)
		}
		return stdout.String()
	}
	out := recovers("recover", "--orphans", "-o", "json")
	var off []keeper.Graft
	if err := json.Unmarshal([]byte(out), &off); err != nil || len(off) != 1 || off[0].ID != o.graft.ID {
		t.Errorf("recovered: %s, %v", out, err)
	}
	recovers("recover", "--all")
	for _, f := range others {
		if n := f.asked.Load(); n != 0 {
			t.Errorf("%s was asked %d times", f.point, n)
		}
	}
	for _, f := range append(fakes, others...) {
		f.end()
	}
	o.asBefore()
}
