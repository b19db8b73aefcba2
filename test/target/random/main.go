// random opens random objects in random ways, keeps a model of what each must be
// (model.go), and compares all of it without end. It is what tests swap files in, as
// random.c in the folder above; this one is a Go program: goroutines that move between
// threads, the poller of the runtime, preemption by signals, children by os/exec and
// syscall.ForkExec.
//
//	random DIR SEED [no-description-locks] [no-maps] [keep-append]
//
// What docs/swap.md and docs/layer.md name as limits is not done.
//
// It prints "ready" and answers each line of stdin with "ok …" or "bad: …", after which
// it ends; "quit" ends it. "bad" comes with the last actions on stderr. The same seed gives
// each worker the same draws; how the workers take turns is up to the scheduler.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	workers = 8
	// patience is for everything that has to happen; the machine may be busy with other things.
	patience = 60 * time.Second
)

// program is the whole target.
type program struct {
	seed uint64
	// what is left out, by words of the command line
	descriptionLocks, memoryMaps, changeAppend bool

	dir      string
	folders  [folders]int // descriptors, O_PATH ones among them
	inodes   [folders]uint64
	list     int // of the folder "list", O_PATH
	files    [files]*file
	listings [listings]listing
	cwd      struct {
		sync.RWMutex
		folder int
	}
	lodgers [lodgers]lodger
	apart   sync.Mutex // held while a thread has its own directories

	log
	stop     atomic.Bool
	progress [workers + wires + 2]atomic.Int64
	running  sync.WaitGroup
}

// The main goroutine keeps the main thread: one with a table of its own (ownDirectories)
// must not be the one that /proc/self shows.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "lodger":
			os.Exit(lodge())
		case "started":
			os.Exit(started(os.Args[2:]))
		}
	}
	if len(os.Args) < 3 {
		os.Exit(2)
	}
	seed, err := strconv.ParseUint(os.Args[2], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	leftOut := func(word string) bool { return slices.Contains(os.Args[3:], word) }
	p := &program{
		seed: seed, dir: os.Args[1],
		descriptionLocks: !leftOut("no-description-locks"), memoryMaps: !leftOut("no-maps"), changeAppend: !leftOut("keep-append"),
	}
	runtime.GOMAXPROCS(4) // also on a machine with fewer processors
	if err := p.prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	p.start()
	fmt.Println("ready")
	p.serve()
}

// prepare makes what is there from the start.
func (p *program) prepare() error {
	if err := os.Chdir(p.dir); err != nil {
		return err
	}
	for i := range p.folders {
		name := fmt.Sprint("d", i)
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
		flags := unix.O_DIRECTORY | unix.O_CLOEXEC
		if i%2 == 1 {
			flags |= unix.O_PATH
		}
		fd, err := unix.Open(name, flags, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
		p.folders[i], p.inodes[i] = fd, st.Ino
	}
	if err := os.Mkdir("list", 0o755); err != nil {
		return err
	}
	for i := range listed {
		if err := os.WriteFile(filepath.Join("list", fmt.Sprint("e", i)), nil, 0o600); err != nil {
			return err
		}
	}
	var err error
	if p.list, err = unix.Open("list", unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open list: %w", err)
	}
	for i := range p.files {
		p.files[i] = &file{number: i}
	}
	return os.Chdir("d0")
}

// start starts all goroutines.
func (p *program) start() {
	run := func(n int, what string, do func(*worker)) {
		p.running.Add(1)
		go func() {
			defer p.running.Done()
			w := newWorker(p, n, what)
			defer w.caught()
			do(w)
		}()
	}
	for n := range workers {
		run(n, "worker", func(w *worker) {
			for !p.over() {
				w.act()
			}
		})
	}
	n := workers
	for kind, open := range wireKinds {
		run(n+kind, "wire", func(w *worker) { w.wire(open) })
	}
	n += wires
	run(n, "signals", (*worker).signals)
	run(n+1, "collector", (*worker).collect)
}

func (p *program) over() bool { return p.stop.Load() || p.isBad() }

// serve answers the lines of stdin.
func (p *program) serve() {
	before := make([]int64, len(p.progress))
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			os.Exit(0)
		}
		p.moved(before)
		if line == "quit\n" {
			p.stop.Store(true)
			p.running.Wait()
			p.finish()
		}
		if p.isBad() {
			time.Sleep(200 * time.Millisecond) // what others are doing
			p.tell(os.Stderr, 60)
			fmt.Println("bad:", p.text())
			os.Exit(1)
		}
		fmt.Printf("ok %d actions\n", p.steps())
		if line == "quit\n" {
			os.Exit(0)
		}
	}
}

// moved: every goroutine has done something since the last time, or does in time.
func (p *program) moved(before []int64) {
	for i := range before {
		for end := time.Now().Add(patience * 2 / 3); p.progress[i].Load() == before[i] && !p.isBad(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				p.setBad(-1, fmt.Sprintf("seed %d: goroutine %d hangs\n%s", p.seed, i, buf[:runtime.Stack(buf, true)]))
			}
		}
		before[i] = p.progress[i].Load()
	}
}

// finish verifies what there is when the workers have ended.
func (p *program) finish() {
	w := newWorker(p, 0, "the end")
	defer w.caught()
	for _, f := range p.files {
		if f.live {
			w.verify(f)
		}
	}
	for i := range p.lodgers {
		p.lodgers[i].end(w)
	}
}

// worker is what a goroutine has of its own.
type worker struct {
	p       *program
	n       int
	what    string
	r       *rand.Rand
	aligned []byte // for O_DIRECT
	buf     []byte
	pipe    [2]int // the kernel's look at a page
	busy    *file  // what an error is about
	step    int64
}

func newWorker(p *program, n int, what string) *worker {
	w := &worker{p: p, n: n, what: what, r: rand.New(rand.NewPCG(p.seed, uint64(n))), buf: make([]byte, maxSize+page)}
	var err error
	if w.aligned, err = unix.Mmap(-1, 0, maxSize+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		panic(err)
	}
	if err := unix.Pipe2(w.pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		panic(err)
	}
	return w
}

// one reports one case of n.
func (w *worker) one(n int) bool { return w.r.IntN(n) == 0 }

// act does one random thing.
func (w *worker) act() {
	switch w.r.IntN(24) {
	case 0:
		w.readFolder()
		return
	case 1:
		if w.one(4) {
			w.changeDir()
		} else {
			w.checkDir()
		}
		return
	case 2:
		if w.one(8) {
			w.ownDirectories()
		}
		return
	}
	f := w.p.files[w.r.IntN(files)]
	if !f.mu.TryLock() {
		return
	}
	defer f.mu.Unlock()
	if !f.live {
		w.create(f)
	}
	switch w.r.IntN(12) {
	case 0:
		w.openAgain(f)
	case 1:
		if w.one(2) {
			w.rename(f)
		} else {
			w.link(f)
		}
	case 2:
		if w.one(4) {
			w.unlink(f)
		}
	case 3:
		if w.one(4) {
			w.pass(f)
		}
	case 4:
		w.verify(f)
	case 5, 6:
		if m := w.aMap(f); m != nil && w.one(3) {
			w.checkMap(f, m)
		} else if m != nil {
			w.changeMap(f, m)
		}
	default:
		if d := w.desc(f, nil); d != nil {
			w.withDesc(f, d)
		}
	}
	f.live = f.name != "" || w.desc(f, nil) != nil || w.aMap(f) != nil
}

func (w *worker) withDesc(f *file, d *desc) {
	if d.flags&unix.O_PATH != 0 {
		switch w.r.IntN(6) {
		case 0:
			w.closeSlot(f, d)
		case 1:
			w.dupSlot(f, d)
		case 2:
			w.setCloexec(f, d)
		default:
			w.checkData(f, d)
		}
		return
	}
	switch n := w.r.IntN(23); {
	case n < 3 && d.reads():
		w.read(f, d, n == 2)
	case n >= 3 && n < 7 && d.writes():
		w.write(f, d, n >= 5)
	case n == 7:
		w.seek(f, d)
	case n == 8 && d.writes():
		w.resize(f, d)
	case n == 9 && w.one(4):
		w.sync(f, d)
	case n == 10:
		w.setFlags(f, d)
	case n == 11:
		w.setOwner(f, d)
	case n == 12 && w.one(8):
		w.takeIn(f)
	case n == 13 && w.one(12):
		w.startProgram(f, d)
	case n == 14 && w.p.descriptionLocks:
		if w.one(2) {
			w.lockRange(f, d, true)
		} else {
			w.lockWhole(f, d)
		}
	case n == 15 || n == 16:
		w.askLodger(f)
	case n == 17 && w.p.memoryMaps:
		w.makeMap(f, d)
	case n == 18:
		w.closeSlot(f, d)
	case n == 19:
		w.dupSlot(f, d)
	case n == 20:
		w.setCloexec(f, d)
	case n > 20:
		w.lockRange(f, d, false)
	}
}

// verify compares all that there is of a file.
func (w *worker) verify(f *file) {
	for i := range f.descs {
		if f.descs[i].live {
			w.checkData(f, &f.descs[i])
		}
	}
	for i := range f.maps {
		if f.maps[i].at != nil {
			w.checkMap(f, &f.maps[i])
		}
	}
	w.checkName(f)
}
