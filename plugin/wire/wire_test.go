package wire

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("WIRE_CONNECT"); path != "" {
		if err := connect(path); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func serving(t *testing.T, h Handler) *Conn {
	t.Helper()
	c, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	s, err := FromDescriptor(fd)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(h) }()
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = s.Close()
	})
	return c
}

func TestCallCarriesBodyAndDescriptors(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	c := serving(t, func(r *Request) (any, []int, error) {
		var in string
		if err := r.Decode(&in); err != nil {
			return nil, nil, err
		}
		return in + r.Method, r.FDs, nil // hands the descriptors back
	})
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	var out string
	fds, err := c.Call(context.Background(), "echo", big, &out, int(f.Fd()), int(f.Fd()))
	if err != nil || out != big+"echo" || len(fds) != 2 {
		t.Fatalf("Call = %d bytes, %d descriptors, %v", len(out), len(fds), err)
	}
	for _, fd := range fds {
		b := make([]byte, 5)
		if n, err := unix.Pread(fd, b, 0); n != 5 || err != nil || string(b) != "hello" {
			t.Errorf("descriptor %d reads %q, %v", fd, b, err)
		}
		_ = unix.Close(fd)
	}
}

func TestCallKeepsErrno(t *testing.T) {
	c := serving(t, func(*Request) (any, []int, error) {
		return nil, nil, &os.PathError{Op: "open", Path: "x", Err: syscall.ESTALE}
	})
	_, err := c.Call(context.Background(), "m", nil, nil)
	if !errors.Is(err, syscall.ESTALE) || !strings.Contains(err.Error(), "open x") {
		t.Fatalf("err = %v", err)
	}
}

// A handler that fails has no descriptor to give; the next call is answered all the same.
func TestFailedHandlerLeavesTheConnection(t *testing.T) {
	c := serving(t, func(r *Request) (any, []int, error) {
		if r.Method == "fails" {
			return nil, []int{-1}, syscall.ESTALE
		}
		return nil, nil, nil
	})
	if _, err := c.Call(context.Background(), "fails", nil, nil); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("err = %v", err)
	}
	if _, err := c.Call(context.Background(), "works", nil, nil); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestCallEndsAtItsDeadline(t *testing.T) {
	release := make(chan struct{})
	c := serving(t, func(*Request) (any, []int, error) { <-release; return nil, nil, nil })
	defer close(release)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, "m", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("err = %v", err)
	}
}

// Who was too slow for some calls is heard again: their answers are not taken for those of others, nor their descriptors kept.
func TestLateAnswers(t *testing.T) {
	release := make(chan struct{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var late sync.WaitGroup // each is answered in its own time
	late.Add(2)
	c := serving(t, func(q *Request) (any, []int, error) {
		if q.Method != "late" {
			return q.Method, nil, nil
		}
		defer late.Done()
		<-release
		fd, err := unix.Dup(int(w.Fd()))
		return q.Method, []int{fd}, err
	})
	for range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if _, err := c.Call(ctx, "late", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		cancel()
	}
	close(release)
	for _, want := range []string{"first", "second"} {
		var got string
		fds, err := c.Call(context.Background(), want, nil, &got)
		if err != nil || got != want || len(fds) > 0 {
			t.Errorf("%s was answered %q, %v, %v", want, got, fds, err)
		}
	}
	late.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor that came late is open still: %d, %v", n, err)
	}
}

func TestOnlyRootGetsIn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: another uid must try to connect")
	}
	dir, err := os.MkdirTemp("", "wire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	long := filepath.Join(dir, strings.Repeat("d", 120))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(long, "s.sock") // longer than sun_path
	l, err := ListenRoot(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 4)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 16)
			n, _ := c.Read(b)
			got <- string(b[:n])
			_ = c.Close()
		}
	}()
	if _, err := ListenRoot(path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a second listener took the socket over")
	}
	<-got // its probe
	// The mode alone keeps others out; open it up so that the credentials check is what is tested.
	for _, p := range []string{dir, long} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "WIRE_CONNECT="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "connected") || !strings.Contains(string(out), "closed on me") {
		t.Errorf("uid 65534: %v: %s", err, out)
	}
	c, err := DialUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("root")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "root" {
		t.Errorf("the listener read %q first: bytes of a peer that is not root", s)
	}
	_ = c.Close()
	_ = l.Close()
	<-done
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file left: %v", err)
	}
}

// connect is the other uid of TestOnlyRootGetsIn.
func connect(path string) error {
	c, err := DialUnix(path)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	println("connected")
	_, _ = c.Write([]byte("evil")) // may already be refused
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		println("closed on me")
	}
	return nil
}
