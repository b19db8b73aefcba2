package holder

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the process that dies and the one that follows it.
const roleVariable = "FAULTGRAFT_TEST_HOLDER_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "server":
		server()
	case "successor":
		successorMain()
	}
}

// server makes a holder, works and waits for its death. It tells its test the
// holder's id and the numbers of its descriptors.
func server() {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	for range 4 { // the runtime is as busy as it can be
		go func() {
			for i := 0; ; i++ {
				work := make([][]byte, 0, 1000)
				for range 1000 {
					work = append(work, make([]byte, 1000))
				}
				runtime.KeepAlive(work)
				if i%10 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	dir := os.Args[len(os.Args)-1]
	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()
	var guardPID int
	_, err := fmt.Sscan(lines.Text(), &guardPID)
	fail(err)
	guard, err := unix.PidfdOpen(guardPID, 0)
	fail(err)
	claim, err := NewClaim()
	fail(err)
	fail(os.Setenv(roleVariable, "successor"))
	h, err := Start(Options{
		Guard: guard, Claim: claim, Generation: FirstGeneration, Patience: time.Second, Successor: "/proc/self/exe",
		Args: []string{"follow", dir, "generation", "@"}, Env: os.Environ(),
	})
	fail(err)
	// Opened when the holder was there already, and unlinked.
	f, err := os.OpenFile(dir+"/file", os.O_RDWR|os.O_CREATE, 0o600)
	fail(err)
	_, err = f.WriteString("0123456789")
	fail(err)
	fail(os.Remove(f.Name()))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 2, Len: 3}
	fail(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock))
	_, err = f.Seek(4, 0)
	fail(err)
	other, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	fail(err)
	fmt.Println(h.PID, f.Fd(), claim.Read, claim.Write, other)
	if lines.Scan() && lines.Text() == "end" {
		fail(h.End(time.Minute))
		fmt.Println("ended")
	}
	select {}
}

// successorMain leaves word of itself and stays until it is killed.
func successorMain() {
	// Not in place: the test reads it as soon as it is there.
	name := os.Args[1] + "/successor"
	if err := os.WriteFile(name+".new", fmt.Appendf(nil, "%d %d %s", os.Getpid(), os.Getppid(), os.Args[3]), 0o600); err != nil {
		os.Exit(1)
	}
	if err := os.Rename(name+".new", name); err != nil {
		os.Exit(1)
	}
	time.Sleep(5 * time.Minute)
}

// victim is a process that made a holder.
type victim struct {
	t                *testing.T
	cmd              *exec.Cmd
	out              *bufio.Scanner
	dir              string
	tell             func(string)
	holder, file     int // pid and descriptor
	claimed          Claim
	other            int
	alreadyCollected bool
}

func startVictim(t *testing.T, guard int) *victim {
	t.Helper()
	v := &victim{t: t, dir: t.TempDir()}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v.cmd = exec.Command(exe, "server", v.dir)
	v.cmd.Env = append(os.Environ(), roleVariable+"=server")
	v.cmd.Stderr = os.Stderr
	in, err := v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		if !v.alreadyCollected {
			_ = v.cmd.Wait()
		}
		if v.holder > 0 {
			if h, err := Open(v.holder); err == nil {
				if err := h.End(time.Minute); err != nil {
					t.Error(err)
				}
				h.Close()
			}
		}
	})
	v.tell = func(s string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, s); err != nil {
			t.Fatal(err)
		}
	}
	v.out = bufio.NewScanner(out)
	v.tell(fmt.Sprint(guard))
	if _, err := fmt.Sscan(v.line(), &v.holder, &v.file, &v.claimed.Read, &v.claimed.Write, &v.other); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *victim) line() string {
	v.t.Helper()
	if !v.out.Scan() {
		v.t.Fatalf("it says nothing: %v", v.out.Err())
	}
	if strings.HasPrefix(v.out.Text(), "error:") {
		v.t.Fatal(v.out.Text())
	}
	return v.out.Text()
}

// kill kills it and waits until it is gone.
func (v *victim) kill(sig syscall.Signal) {
	v.t.Helper()
	if err := v.cmd.Process.Signal(sig); err != nil {
		v.t.Fatal(err)
	}
	v.alreadyCollected = true
	if err := v.cmd.Wait(); err == nil {
		v.t.Fatal("it lives")
	}
}

// guard is a process that can be killed.
func guard(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			out, _ := exec.Command("sh", "-c", "for p in $(pgrep "+Name+"); do cat /proc/$p/stat /proc/$p/syscall; pgrep -P $p -l; ls -l /proc/$p/fd; done").CombinedOutput()
			t.Fatalf("not within a minute: %s\n%s", what, out)
		}
	}
}
