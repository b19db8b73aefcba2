package keeper

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

// servedForFuzzing is a layer over an empty directory that is mounted nowhere, served by this process, and its mount.
func servedForFuzzing(f testing.TB) *fusefs.Layer {
	f.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil || os.Getuid() != 0 {
		f.Skip("needs root and /dev/fuse")
	}
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	must(err)
	for _, kv := range [][2]string{{"source", "fuzz"}, {"fd", strconv.Itoa(device)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}} {
		must(unix.FsconfigSetString(fs, kv[0], kv[1]))
	}
	must(unix.FsconfigCreate(fs))
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(err)
	must(unix.Close(fs))
	root, err := unix.Open(f.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(err)
	l, err := fusefs.New(fusefs.Options{Device: device, Root: root, Prefix: "/data", Logger: silent})
	must(err)
	must(l.Serve())
	f.Cleanup(func() {
		_ = unix.Close(mount) // the last: the connection ends
		l.Wait()
	})
	return l
}

// brought is a request with n descriptors of a file.
func brought(t testing.TB, file *os.File, method string, body []byte, n uint8) *wire.Request {
	t.Helper()
	r := &wire.Request{Method: method, Body: body}
	for range n % 8 {
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		r.FDs = append(r.FDs, fd)
	}
	return r
}

// leftOf counts descriptors of this process that lead to a file.
func leftOf(t testing.TB, file *os.File) (n int) {
	t.Helper()
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", l.Name())); err == nil && to == file.Name() {
			n++
		}
	}
	return n - 1 // the file itself
}

// bodies are of each kind of call, and of none.
var bodies = []string{
	"", "null", "{}", "[]", "0", "-1", "1e99", "true", `"x"`, "[1,1]", "[18446744073709551615]", "[-1]", `[{}]`, "[[[[",
	`{"layer":"g","rules":[{}]}`, `{"layer":"g","rules":[null],"coming":true}`, `{"layer":"g","since":-9223372036854775808}`,
	`{"layer":"g","rules":[{"name":"r","kind":"io","io":{"fault":{"errno":5}},"trigger":{"p":-1,"ttl":1}}]}`,
	`{"layer":"g","rule":"r"}`, `{"layer":"","info":{"path":"/","prefix":"..","dev":1},"place":{"pid":-1,"tree":true}}`,
	`{"path":"/x","prefix":"/x"}`, `{"tid":1,"all":[{"token":"short"}]}`, `{"tid":-1,"all":[]}`, `{"tid":1,"all":[{"path":"x"},{"path":"x"}]}`,
	`{"phase":-7,"files":[{"pid":1,"ino":1,"locks":[{"type":9,"start":-5,"len":-5}]}]}`, `{"phase":1,"files":[{"pid":1,"tid":2,"ino":1}],"leaving":true}`,
	`{"pid":-1,"tid":-1,"ino":1,"keep":true}`, `{"ino":1,"path":"../../.."}`,
	`[{"layer":"g","released":1},{"layer":"g","retired":true},{"layer":"g","resent":18446744073709551615},{"layer":"g","unused":true},{"layer":"g","crowded":{"open":-1}}]`,
	`[{"layer":"g","crowded":{"open":1}},{"layer":"x","released":5}]`,
}

func addBodies(f *testing.F, methods int) {
	f.Helper()
	for i, b := range bodies {
		for m := range methods {
			f.Add(uint8(m), []byte(b), uint8(i%4))
			f.Add(uint8(m), []byte(b), uint8(2))
		}
	}
}

// fuzzDesk has a desk asked anything, with any number of descriptors: it answers, or says why not, and keeps no descriptor.
func fuzzDesk(t *testing.T, methods []string, method uint8, body []byte, n uint8, handle wire.Handler, over func()) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	m := methods[int(method)%len(methods)]
	_, fds, err := handle(brought(t, file, m, body, n))
	for _, fd := range fds {
		_ = unix.Close(fd) // as wire.Conn does; -1 goes with an error
	}
	over()
	if left := leftOf(t, file); left != 0 {
		t.Errorf("%s %q: %d descriptors of %d are left (%v)", m, body, left, n%8, err)
	}
}

// FuzzServerDesk is about what a keeper asks of a server.
func FuzzServerDesk(f *testing.F) {
	methods := []string{callServe, callRules, callStatus, callFaults, callRetired, callRelease, callSwapper, callEstate, callRestore, callResume, callEnd, "?"}
	l := servedForFuzzing(f)
	addBodies(f, len(methods))
	f.Fuzz(func(t *testing.T, method uint8, body []byte, n uint8) {
		s := newServerForFuzzing(t, l)
		m := methods[int(method)%len(methods)]
		if m == callEnd {
			s.layers = nil // the layer is needed
		}
		fuzzDesk(t, methods, method, body, n, s.handle, func() { _ = l.SetRules(nil, time.Now()) })
	})
}

func newServerForFuzzing(t testing.TB, l *fusefs.Layer) *server {
	return &server{
		o: ServerOptions{StateDir: t.TempDir(), Logger: silent}, layers: map[string]*servedLayer{"g": {layer: l, call: serveCall{Layer: "g"}, device: -1}},
		swappers: map[int]chan struct{}{},
	}
}

// FuzzSwapperDesk is about what a swapper asks of a server.
func FuzzSwapperDesk(f *testing.F) {
	methods := []string{callArm, callDisarm, callOpenFiles, callBacking, callLocks, callLockedFiles, callEndFlushes, callGuardLocks, callKeepLocks, callMoved, "?"}
	l := servedForFuzzing(f)
	addBodies(f, len(methods))
	f.Fuzz(func(t *testing.T, method uint8, body []byte, n uint8) {
		h := &swapperHandler{server: newServerForFuzzing(t, l), id: "g", pid: os.Getpid()}
		fuzzDesk(t, methods, method, body, n, h.handle, func() { // as when the swapper has gone
			var c armCall
			if (&wire.Request{Body: body}).Decode(&c) == nil {
				l.Disarm(c.TID)
			}
			l.Trust(h.pid, false)
			_, _ = l.KeepLocks(false)
			l.EndGuards(0, 0, 0)
		})
	})
}

// FuzzKeeperDesk is about what a swapper asks of its keeper.
func FuzzKeeperDesk(f *testing.F) {
	methods := []string{callJob, callLayer, callAdopted, callRemains, callKeep, callOwners, callResult, "?"}
	addBodies(f, len(methods))
	f.Fuzz(func(t *testing.T, method uint8, body []byte, n uint8) {
		s := &server{o: ServerOptions{StateDir: t.TempDir(), Logger: silent}, layers: map[string]*servedLayer{}}
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*wire.Conn
		for i, fd := range ends {
			if conns[i], err = wire.FromDescriptor(fd); err != nil {
				t.Fatal(err)
			}
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = conns[1].Serve(s.handle)
		}()
		h := &held{Graft: Graft{ID: "g"}, device: -1, backing: -1, mount: -1, bottom: -1, peer: -1}
		k := &keeper{o: Options{Logger: silent}, grafts: map[string]*held{"g": h}}
		d := &deskOfSwapper{k: k, h: h, server: newServerClient(conns[0], nil)}
		fuzzDesk(t, methods, method, body, n, d.handle, func() {
			for _, fd := range []int{h.device, h.backing, h.mount, h.bottom, h.peer} {
				if fd >= 0 {
					_ = unix.Close(fd)
				}
			}
			wire.CloseAll(d.kept)
			for _, fd := range h.adopted {
				_ = unix.Close(fd)
			}
			_ = conns[0].Close()
			<-served
			_ = conns[1].Close()
		})
	})
}

// FuzzNewsDesk is about what a server tells its keeper.
func FuzzNewsDesk(f *testing.F) {
	addBodies(f, 1)
	f.Fuzz(func(t *testing.T, method uint8, body []byte, n uint8) {
		events, err := OpenEventLog(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = events.Close() }()
		k := &keeper{o: Options{Logger: silent}, events: events, grafts: map[string]*held{"g": {Graft: Graft{ID: "g"}, swapping: true}}}
		fuzzDesk(t, []string{callNews}, method, body, n, k.newsDesk, func() {})
	})
}
