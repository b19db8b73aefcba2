package fusefs_test

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// actorEnv marks a process that makes the calls of programs. They are made by
// processes of their own: the one that serves a layer must not wait for itself,
// and record locks are between processes.
const actorEnv = "FUSEFS_TEST_ACTOR"

// patience is how long one call may take; it is a hang if it takes longer.
const patience = 30 * time.Second

// actor is such a process, as the test sees it.
type actor struct {
	model *model
	cmd   *exec.Cmd
	in    *gob.Encoder
	out   *gob.Decoder
	pipes []*os.File
}

type request struct {
	Begin  []string // directories: layer, plain, below the layer
	Make   bool     // put the first files there
	Call   *call
	Finish bool
	Remove string
}

type answer struct {
	Out [2]string
	Err string
}

func startActor(m *model) *actor {
	toR, toW, err := os.Pipe()
	must(m, err)
	fromR, fromW, err := os.Pipe()
	must(m, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), actorEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = toR, fromW, os.Stderr
	must(m, cmd.Start())
	must(m, errors.Join(toR.Close(), fromW.Close()))
	return &actor{model: m, cmd: cmd, in: gob.NewEncoder(toW), out: gob.NewDecoder(fromR), pipes: []*os.File{toW, fromR}}
}

// ask sends a request and waits for the answer.
func (a *actor) ask(r request) (answer, error) {
	var got answer
	if err := a.pipes[1].SetReadDeadline(time.Now().Add(patience)); err != nil {
		return got, err
	}
	err := a.in.Encode(r)
	if err == nil {
		err = a.out.Decode(&got)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", a.cmd.Process.Pid)) // may be absent
		all := make([]byte, 1<<20)
		all = all[:runtime.Stack(all, true)]
		return got, fmt.Errorf("hangs: in the kernel:\n%s\nthe server:\n%s", stack, all)
	}
	if err == nil && got.Err != "" {
		err = errors.New(got.Err)
	}
	return got, err
}

func (a *actor) begin(dirs [3]string, first bool) {
	_, err := a.ask(request{Begin: dirs[:], Make: first})
	must(a.model, err)
}

func (a *actor) call(c call) ([2]string, error) {
	got, err := a.ask(request{Call: &c})
	return got.Out, err
}

func (a *actor) finish() error {
	_, err := a.ask(request{Finish: true})
	return err
}

func (a *actor) remove(dir string) error {
	_, err := a.ask(request{Remove: dir})
	return err
}

func (a *actor) stop() {
	_ = a.cmd.Process.Kill() // what it has open does not matter any more
	_ = a.cmd.Wait()
	for _, p := range a.pipes {
		_ = p.Close()
	}
}

// process is the same, as the process itself sees it.
type process struct {
	roots [3]int // layer, plain, below the layer
	fds   [2][fdSlots]int
	maps  [2][mapSlots][]byte
	pipe  [2]int
	began time.Time
	after history
}

// act is the main function of an actor.
func act() int {
	runtime.LockOSThread() // user ids are a thread's
	p := &process{}
	for s := range p.fds {
		for i := range p.fds[s] {
			p.fds[s][i] = -1
		}
	}
	if err := unix.Pipe2(p.pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			fmt.Fprintln(os.Stderr, "actor:", err)
			return 1
		}
		got, err := p.serve(r)
		a := answer{Out: got}
		if err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			fmt.Fprintln(os.Stderr, "actor:", err)
			return 1
		}
	}
}

func (p *process) serve(r request) ([2]string, error) {
	switch {
	case len(r.Begin) == len(p.roots):
		unix.Umask(0)
		p.began = time.Now()
		for i, dir := range r.Begin {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return [2]string{}, err
			}
			p.roots[i] = fd
			if r.Make && i < 2 {
				if err := firstFiles(fd); err != nil {
					return [2]string{}, err
				}
			}
			if i < 2 {
				for slot, o := range firstOpen {
					fd, err := unix.Openat(fd, o.name, o.flags|unix.O_CLOEXEC, 0)
					if err != nil {
						return [2]string{}, err
					}
					p.fds[i][slot] = fd
				}
			}
		}
	case r.Call != nil:
		return p.call(*r.Call)
	case r.Finish:
		return [2]string{}, p.finish()
	case r.Remove != "":
		return [2]string{}, os.RemoveAll(r.Remove)
	}
	return [2]string{}, nil
}

// call makes a call at both sides.
func (p *process) call(c call) (out [2]string, err error) {
	o, ok := ops[c.Op]
	if !ok {
		return out, fmt.Errorf("no call %q", c.Op)
	}
	p.after = c.After
	layer := p.roots[0]
	for side := range out {
		if c.Behind {
			p.roots[0] = p.roots[2]
		}
		out[side] = o.run(p, side, c)
		p.roots[0] = layer
		if c.Look {
			out[side] += p.look(o, side, c)
		}
	}
	return out, nil
}

// firstOpen is what is open in both processes when a program begins.
var firstOpen = []struct {
	name  string
	flags int
}{{"a", unix.O_RDWR}, {"d/b", unix.O_RDWR}, {"d", unix.O_RDONLY}}

// firstFiles are the files that there are then.
func firstFiles(root int) error {
	write := func(name string, mode uint32, n int64) error {
		fd, err := unix.Openat(root, name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, mode)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, data(n, 1))
		return errors.Join(err, unix.Close(fd))
	}
	return errors.Join(unix.Mkdirat(root, "d", 0o777), write("a", 0o644, 5000), write("d/b", 0o666, 100), unix.Symlinkat("a", root, "s"))
}

// finish closes all, and is root again.
func (p *process) finish() error {
	if err := p.become(0, 0); err != nil {
		return err
	}
	for side := range p.fds {
		for i := range p.fds[side] {
			p.close(side, i)
		}
		for i := range p.maps[side] {
			p.unmap(side, i)
		}
	}
	for i, fd := range p.roots {
		if err := unix.Close(fd); err != nil {
			return err
		}
		p.roots[i] = -1
	}
	return nil
}

func (p *process) close(side, slot int) string {
	fd := p.fds[side][slot]
	p.fds[side][slot] = -1
	if fd < 0 {
		return "not open"
	}
	return result(unix.Close(fd))
}

// put puts a new descriptor into a slot.
func (p *process) put(side, slot, fd int, err error) string {
	if err != nil {
		return result(err)
	}
	p.close(side, slot)
	p.fds[side][slot] = fd
	return "ok"
}

// result is how a call went.
func result(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e) && unix.ErrnoName(e) != "":
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func number(n int64, err error) string {
	if err != nil {
		return result(err)
	}
	return fmt.Sprint(n)
}

// data is n bytes that differ by seed and place.
func data(n int64, seed byte) []byte {
	b := make([]byte, max(n, 0))
	for i := range b {
		b[i] = seed + byte(i*7) + byte(i>>8)
	}
	return b
}

func quote(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%.4q…(%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}

// named is a set of flags, for printing.
func named(v int, names []string, values []int) string {
	var out []string
	for i, b := range values {
		if b != 0 && v&b == b {
			out = append(out, names[i])
			v &^= b
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, fmt.Sprintf("%#o", v))
	}
	return strings.Join(out, "|")
}
