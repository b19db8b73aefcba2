package property

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program is a running target that answers each line of its input with a line.
type program struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // closed at the end of its output
	said  logged
	ended bool
}

// logged keeps what a program writes to its standard error.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a target and waits until it is ready.
func start(t testing.TB, attr *syscall.SysProcAttr, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(args[0], args[1:]...), lines: make(chan string, 16)}
	attr.Setpgid, p.cmd.WaitDelay = true, 5*time.Second
	p.cmd.SysProcAttr, p.cmd.Stderr = attr, &p.said
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(p.kill)
	if got := p.line(); got != "ready" {
		t.Fatalf("the target says %q: %s", got, &p.said)
	}
	return p
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// kill ends the target and all that it has made: its process group.
func (p *program) kill() {
	if p.ended {
		return
	}
	p.ended = true
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // ESRCH: all have ended
	_ = p.cmd.Wait()                            // it was killed
}

// patience is how long a target may take with what it was asked for. An emulated machine is slow.
func patience() time.Duration {
	if os.Getenv("FAULTGRAFT_VM") != "" {
		return 20 * time.Minute
	}
	return time.Minute
}

// line reads an answer.
func (p *program) line() string {
	p.t.Helper()
	select {
	case s, ok := <-p.lines:
		if !ok {
			err := p.cmd.Wait()
			p.ended = true
			p.t.Fatalf("the target is gone: %v: %s", err, &p.said)
		}
		return s
	case <-time.After(patience()):
		p.t.Fatalf("the target does not answer: %s\n%s", &p.said, threadStates(p.pid()))
		return ""
	}
}

// ask says a word to the target, which has to answer ok.
func (p *program) ask(word string) string {
	p.t.Helper()
	if _, err := io.WriteString(p.in, word+"\n"); err != nil {
		p.t.Fatalf("%s: the target is gone: %v: %s", word, err, &p.said)
	}
	answer := p.line()
	if !strings.HasPrefix(answer, "ok") {
		p.lastWords()
		p.t.Fatalf("%s: the target says %q: %s", word, answer, &p.said)
	}
	return answer
}

// lastWords waits until a target that ends by itself has told all that it has to tell.
func (p *program) lastWords() {
	for end := time.After(30 * time.Second); ; {
		select {
		case _, ok := <-p.lines:
			if !ok {
				p.ended = true
				_ = p.cmd.Wait() // it failed
				return
			}
		case <-end:
			return
		}
	}
}

// quit ends the target, which must be content, and returns its last word.
func (p *program) quit() string {
	p.t.Helper()
	answer := p.ask("quit")
	_ = p.in.Close()
	p.ended = true
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the target: %v: %s", err, &p.said)
	}
	return answer
}

// threadStates tells where each thread of a process is.
func threadStates(pid int) string {
	var b strings.Builder
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, d := range dirs {
		stat, _ := os.ReadFile(d + "/stat")
		call, _ := os.ReadFile(d + "/syscall")
		stack, _ := os.ReadFile(d + "/stack")
		name, rest, _ := strings.Cut(string(stat), ") ")
		fmt.Fprintf(&b, "%s) %.1s, call %s%s", name, rest, call, stack)
	}
	return b.String()
}
