package graft

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// asOurs has this program be a process of faultgraft, in place of running tests: "rest", or the path of a mount
// namespace, in which a thread asks the file system of descriptor 3 for attributes.
const asOurs = "FAULTGRAFT_TEST_AS_OURS"

func init() { runtime.LockOSThread() } // as faultgraft: its first thread is in no other namespace

func TestMain(m *testing.M) {
	switch as := os.Getenv(asOurs); as {
	case "":
		os.Exit(m.Run())
	case "rest":
		_, _ = io.Copy(io.Discard, os.Stdin)
	default:
		n, err := enterNamespace(as)
		if err == nil {
			err = n.do(func() error {
				var x unix.Statx_t
				return unix.Statx(3, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &x)
			})
		}
		fmt.Println(err)
	}
}

// startTarget starts a process in a mount namespace of its own.
func startTarget(t *testing.T) Target {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it looks into other processes")
	}
	pid := startProgram(t, exec.Command("unshare", "--mount", "sleep", "600"))
	await(t, "the target is in a mount namespace of its own", func() bool { return CommOf(pid) == "sleep" })
	target, err := CheckTarget(pid)
	if err != nil || target.Tree {
		t.Fatalf("%+v, %v", target, err)
	}
	return target
}

func startProgram(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// The command or agent of another version is not known by its executable; who looks for layers that nobody serves has one open.
func TestAnotherVersionIsOurs(t *testing.T) {
	target := startTarget(t)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var ours []int
	for _, name := range []string{"faultgraft", "10-faultgraft"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "recover", "--orphans")
		cmd.Env = append(os.Environ(), asOurs+"=rest")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		ours = append(ours, startProgram(t, cmd))
		if err := os.Remove(path); err != nil { // as by an upgrade
			t.Fatal(err)
		}
	}
	other := startProgram(t, exec.Command("sleep", "600"))
	pids, err := reachableProcesses(target)
	if err != nil || !slices.Contains(pids, target.PID) || !slices.Contains(pids, other) {
		t.Fatalf("process %d or %d is none that is looked at: %v, %v", target.PID, other, pids, err)
	}
	for _, pid := range ours {
		if slices.Contains(pids, pid) {
			t.Errorf("process %d is one of faultgraft, and passes for one of the target's", pid)
		}
	}
}

// A process that is executed into faultgraft between the list of all processes and the look at it is one of faultgraft: stopped, it could
// wait for the very server that the swap goes on with.
func TestOneThatBecomesOursIsLeftAlone(t *testing.T) {
	target := startTarget(t)
	dir := t.TempDir()
	file, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	for _, p := range []string{file, other} {
		if err := os.WriteFile(p, []byte("data"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	become := exec.Command("sh", "-c", "exec 5<"+file+"; read x; exec "+self)
	become.Env = append(os.Environ(), asOurs+"=rest")
	say, err := become.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	program := exec.Command("sh", "-c", "exec 5<"+file+"; exec sleep 600")
	has := func(pid int) string {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/5", pid)) // none yet
		return link
	}
	ours, its := startProgram(t, become), startProgram(t, program)
	for _, pid := range []int{ours, its} {
		await(t, "the file is open", func() bool { return has(pid) == file })
	}
	told := false
	rep, err := swapEverywhere(context.Background(), target, tracer.Options{
		Match: func(o *tracer.Object) bool { return o.Kind == tracer.Descriptor && o.Path == file },
		Replace: func(*tracer.Description) (int, error) {
			return unix.Open(other, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		},
		Progress: func() { // all were listed, and none was looked at
			if told {
				return
			}
			told = true
			if _, err := fmt.Fprintln(say); err != nil {
				t.Error(err)
			}
			await(t, "the program is executed", func() bool {
				exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", ours))
				return exe == self
			})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if has(its) != other {
		t.Errorf("another program has %s: %+v", has(its), rep)
	}
	if has(ours) != file {
		t.Errorf("the process of faultgraft has %s", has(ours))
	}
}

// awaitRequest reads a request of the kernel from /dev/fuse, and gives its number.
func awaitRequest(t *testing.T, device int, op uint32) (unique uint64) {
	t.Helper()
	request := make([]byte, 1<<17)
	n, err := unix.Read(device, request)
	if err != nil || n < 40 || binary.NativeEndian.Uint32(request[4:]) != op {
		t.Fatalf("%d bytes, %x, %v; want request %d", n, request[:40], err, op)
	}
	return binary.NativeEndian.Uint64(request[8:])
}

// What is left of a swapper that was killed can be the one thread that works in the target's mount namespace, and waits there for a file system that
// does not answer. It is none of the target's processes.
func TestRemainderOfOneOfOurs(t *testing.T) {
	target := startTarget(t)
	m, err := newFuseMount("test", unix.S_IFDIR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(m.mount) }()
	device := os.NewFile(uintptr(m.device), "device")
	defer func() { _ = device.Close() }()
	const opInit, opGetattr = 26, 3 // include/uapi/linux/fuse.h
	init := awaitRequest(t, m.device, opInit)
	answer := binary.NativeEndian.AppendUint32(nil, 16+64)
	answer = binary.NativeEndian.AppendUint32(answer, 0)
	answer = binary.NativeEndian.AppendUint64(answer, init)
	for _, n := range []uint32{7, 31} {
		answer = binary.NativeEndian.AppendUint32(answer, n)
	}
	if _, err := unix.Write(m.device, append(answer, make([]byte, 56)...)); err != nil {
		t.Fatal(err)
	}
	dup, err := unix.Dup(m.mount)
	if err != nil {
		t.Fatal(err)
	}
	mount := os.NewFile(uintptr(dup), "mount")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=/proc/%d/ns/mnt", asOurs, target.PID))
	cmd.ExtraFiles = []*os.File{mount}
	ours := startProgram(t, cmd)
	t.Cleanup(func() { _ = device.Close() }) // before it is waited for
	_ = mount.Close()                        // a duplicate
	awaitRequest(t, m.device, opGetattr)
	if pids, err := target.Processes(); err != nil || slices.Contains(pids, ours) {
		t.Fatalf("process %d passes for one of the target's: %v, %v", ours, pids, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "one thread is left", func() bool {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", ours))
		return err == nil && len(tasks) == 2 && strings.HasPrefix(statusOf(ours, "State"), "Z")
	})
	pids, err := target.Processes()
	if err != nil || !slices.Equal(pids, []int{target.PID}) {
		t.Errorf("the target's processes: %v, %v, want %d", pids, err, target.PID)
	}
	if pids, err = reachableProcesses(target); err != nil || slices.Contains(pids, ours) {
		t.Errorf("process %d is to be looked at: %v", ours, err)
	}
}
