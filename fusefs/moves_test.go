package fusefs_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
)

// sharedMap maps a file's first page through fd, and closes fd.
func sharedMap(t *testing.T, fd int) []byte {
	t.Helper()
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

func openOnly(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// closed waits until the layer, which this process serves, has heard of the last close of a
// file: all that it has of it then is the node.
func (b *bench) closed(name string) {
	b.Helper()
	eventually(b, "the last close of "+name+" is seen", func() bool {
		n := 0
		links, err := filepath.Glob("/proc/self/fd/*")
		must(b, err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && to == b.under(name) {
				n++
			}
		}
		return n <= 1
	})
}

// moved is what a swapper says that has moved all that is open of retired files.
func (b *bench) moved() {
	var nodes []uint64
	for _, f := range b.Retired() {
		nodes = append(nodes, f.Node)
	}
	b.Moved(nodes)
}

// A file of which nothing is left but a map is one that a rule comes to, and so has to be
// moved; one that was only open is not.
func TestMappedFileIsRetired(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{})
	b.write("mapped", "0123456789")
	b.write("closed", "0123456789")
	fd := openOnly(t, b.path("mapped"), unix.O_RDWR)
	mem := sharedMap(t, fd)
	must(t, unix.Close(fd))
	must(t, unix.Close(openOnly(t, b.path("closed"), unix.O_RDWR)))
	b.closed("mapped")
	b.closed("closed")
	b.rules("io error=EIO op=write p=0")
	if list := b.Retired(); len(list) != 1 || list[0].Path != "/data/mapped" {
		t.Errorf("retired: %+v", list)
	}
	mem[0] = 'x'
	if got, err := os.ReadFile(b.path("mapped")); err != nil || string(got) != "x123456789" {
		t.Errorf("%q %v", got, err)
	}
	eventually(b, "nothing is left to be moved", func() bool { // that of ReadFile, too, as long as its close is not seen
		b.moved()
		return len(b.Retired()) == 0
	})
}

// A file that is opened in a way that needs the layer shows in its maps what an earlier
// map, of which nothing but the map is left, has stored, and the reverse.
func TestMapsOfOneFile(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{})
	b.write("f", "0123456789")
	fd := openOnly(t, b.path("f"), unix.O_RDWR)
	first := sharedMap(t, fd)
	must(t, unix.Close(fd))
	b.closed("f")
	app := b.open("f", unix.O_RDWR|unix.O_APPEND)
	second := sharedMap(t, app)
	if second[0] != '0' {
		t.Errorf("%q", second[:10])
	}
	first[0] = 'a'
	second[1] = 'b'
	if string(first[:10]) != "ab23456789" || string(second[:10]) != "ab23456789" {
		t.Errorf("one map shows %q, the other %q", first[:10], second[:10])
	}
	if got, err := os.ReadFile(b.path("f")); err != nil || string(got) != "ab23456789" {
		t.Errorf("%q %v", got, err)
	}
}

// A map shows what was written below as soon as its pages were dropped, and what was stored in it is there.
func TestDropPages(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "0123456789")
	mem := sharedMap(t, b.open("f", unix.O_RDWR))
	mem[0] = 'a'
	must(t, unix.Msync(mem, unix.MS_SYNC))
	below := b.below("f", unix.O_RDWR)
	_, err := unix.Pwrite(below, []byte("b"), 1)
	must(t, err)
	if string(mem[:4]) != "a123" {
		t.Errorf("the map shows %q already", mem[:4])
	}
	b.DropPages()
	if string(mem[:4]) != "ab23" {
		t.Errorf("the map shows %q", mem[:4])
	}
	mem[2] = 'c'
	b.DropPages()
	if got, err := os.ReadFile(b.under("f")); err != nil || string(got) != "abc3456789" {
		t.Errorf("below is %q %v", got, err)
	}
}

// Nobody opens the new inode of a retired file before what is open of the old one has been
// moved: the maps of both would differ.
func TestOpenWaitsForTheMove(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{retire: func() {}})
	b.write("f", "0123456789")
	before := b.open("f", unix.O_RDWR)
	b.rules("io error=EIO op=write p=0 path=/data/f")
	var opened atomic.Bool
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		fd, err := unix.Open(b.path("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		opened.Store(true)
		if err == nil {
			err = unix.Close(fd)
		}
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	again := b.openAt(before) // the old inode
	if _, err := unix.Pread(again, make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
	if opened.Load() && time.Since(start) < 500*time.Millisecond {
		t.Error("it was opened before the move")
	}
	must(t, unix.Close(before))
	b.moved()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who opens a file whose move has failed, and who could not wait for one, shares the maps of those that are not
// moved, and meets the rule in what it writes. The swapper that has prepared other files may not use them then, and
// the next one moves both.
func TestOpenWithoutAMove(t *testing.T) {
	needsPassthrough(t)
	for name, prepared := range map[string]bool{"nothing is prepared": false, "files are prepared": true} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			b := over(t, setup{retire: func() { asked.Add(1) }})
			b.write("f", "0123456789")
			fd := b.open("f", unix.O_RDWR)
			old := sharedMap(t, fd)
			b.rules("io error=EIO op=write p=0 path=/data/f")
			ready := -1
			if prepared {
				b.Trust(os.Getpid(), true)
				ready, _ = b.adopt(b.below("f", unix.O_RDWR), "f", unix.O_RDWR, fusefs.Adoption{})
				b.Trust(os.Getpid(), false)
			}
			b.EndMove(time.Now())
			late := b.open("f", unix.O_RDWR)
			mem := sharedMap(t, late)
			old[0] = 'a'
			_, err := unix.Pwrite(fd, []byte("b"), 1)
			must(t, err)
			mem[2] = 'c'
			_, err = unix.Pwrite(late, []byte("d"), 3)
			must(t, err)
			for what, m := range map[string][]byte{"the old map": old, "the late map": mem} {
				if string(m[:10]) != "abcd456789" {
					t.Errorf("%s shows %q", what, m[:10])
				}
			}
			if m := b.Rules()[0].Matched; m != 1 {
				t.Errorf("the rule has seen %d writes", m)
			}
			_, err = b.KeepLocks(true)
			if prepared != (err != nil) {
				t.Errorf("files are exchanged: %v", err)
			}
			_, err = b.KeepLocks(false)
			must(t, err)
			if prepared {
				must(t, unix.Close(ready))
				return
			}
			b.moved()
			if list := b.Retired(); len(list) != 2 || asked.Load() == 0 { // that of fd, which this test has not moved, and that of late
				t.Errorf("to be moved: %+v, asked for %d times", list, asked.Load())
			}
		})
	}
}

// Who waits for a move and is stopped for it lets the move go on: what it opens is as the files that are prepared.
func TestOpenOfOneWhoIsStopped(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{retire: func() {}})
	b.write("f", "0123456789")
	old := b.open("f", unix.O_RDWR)
	b.rules("io error=EIO op=write p=0 path=/data/f")
	b.Trust(os.Getpid(), true) // as the swapper
	moved, _ := b.adopt(b.below("f", unix.O_RDWR), "f", unix.O_RDWR, fusefs.Adoption{})
	cmd := exec.Command("sh", "-c", `exec 3<>"$1"; echo opened; read -r _`, "sh", b.path("f"))
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(b, "it waits for the move", func() bool {
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		return err == nil && strings.HasPrefix(string(call), strconv.Itoa(unix.SYS_OPENAT)+" ")
	})
	runtime.LockOSThread() // the tracer
	defer runtime.UnlockOSThread()
	must(t, unix.PtraceSeize(pid))
	must(t, unix.PtraceInterrupt(pid))
	var ws unix.WaitStatus
	_, err = unix.Wait4(pid, &ws, unix.WALL, nil)
	must(t, err)
	_, err = b.KeepLocks(true)
	if err != nil {
		t.Errorf("the files that are prepared cannot be used: %v", err)
	}
	b.moved()
	_, err = b.KeepLocks(false)
	must(t, err)
	b.Trust(os.Getpid(), false)
	must(t, unix.Close(old))
	must(t, unix.PtraceDetach(pid))
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "opened\n" {
		t.Errorf("it was told %q %v", line, err)
	}
	mem := sharedMap(t, moved)
	theirs := sharedMap(t, openOnly(t, fmt.Sprintf("/proc/%d/fd/3", pid), unix.O_RDWR))
	mem[0] = 'a'
	theirs[1] = 'b'
	if string(mem[:10]) != "ab23456789" || string(theirs[:10]) != "ab23456789" {
		t.Errorf("one map shows %q, the other %q", mem[:10], theirs[:10])
	}
	must(t, in.Close())
}

// Files that a swapper has taken up are in use: what is opened after that is as they are.
func TestOpenAfterTheExchange(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{retire: func() {}})
	b.write("f", "0123456789")
	fd := b.open("f", unix.O_RDWR)
	b.rules("io error=EIO op=write p=0 path=/data/f")
	b.Trust(os.Getpid(), true)
	moved, _ := b.adopt(b.below("f", unix.O_RDWR), "f", unix.O_RDWR, fusefs.Adoption{})
	b.Trust(os.Getpid(), false)
	_, err := b.KeepLocks(true)
	must(t, err)
	mem := sharedMap(t, moved)
	b.EndMove(time.Now())
	other := sharedMap(t, b.open("f", unix.O_RDWR))
	mem[0] = 'a'
	other[1] = 'b'
	if string(mem[:10]) != "ab23456789" || string(other[:10]) != "ab23456789" {
		t.Errorf("one map shows %q, the other %q", mem[:10], other[:10])
	}
	_, err = b.KeepLocks(false)
	must(t, err)
	must(t, unix.Close(fd))
	b.moved()
}
