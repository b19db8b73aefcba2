package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Event is one injection.
type Event struct {
	Time  time.Time `json:"time"`
	Fault string    `json:"fault"`
	Rule  string    `json:"rule"`
	// Seq is the number of the matching operation under the fault, from 1.
	Seq uint64 `json:"seq"`
	// PID and TID are the process and thread as the host numbers them.
	PID  int    `json:"pid"`
	TID  int    `json:"tid"`
	Comm string `json:"comm"`
	// Cgroup is the id of the cgroup that the thread was in, which may be below
	// the fault's; of a block request it is the fault's.
	Cgroup uint64 `json:"cgroup"`
	// Hook is the rule's hook point, Function the kernel function that failed for it, Backend the way.
	Hook     string `json:"hook"`
	Function string `json:"function"`
	Backend  string `json:"backend"`
	// Error is the errno's name.
	Error string `json:"error"`
	// Stack are the kernel functions, the innermost first, if the rule asks for them.
	Stack []string `json:"stack,omitempty"`
}

// ringSize is how many bytes of records wait at most until they are read: some
// 14,000 without stacks.
const ringSize = 1 << 20

// ring reads the records of injections from one ring buffer.
type ring struct {
	buffer  *ebpf.Map
	reader  *ringbuf.Reader
	deliver func(Event)
	log     *slog.Logger
	ended   chan struct{}

	mu      sync.Mutex
	faults  map[uint64]*Armed // by handle
	leaving []uint64          // handles to forget once what is in the buffer was read
	closing bool
}

func newRingMap() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "faultgraft_ring", Type: ebpf.RingBuf, MaxEntries: ringSize})
	if err != nil {
		return nil, fmt.Errorf("ring buffer for the injections: %w", err)
	}
	return m, nil
}

// readRing takes the map over and begins to read, if there is anybody to deliver to.
func readRing(m *ebpf.Map, deliver func(Event), log *slog.Logger, faults map[uint64]*Armed) (*ring, error) {
	r := &ring{buffer: m, deliver: deliver, log: log, ended: make(chan struct{}), faults: faults}
	if deliver == nil {
		return r, nil
	}
	var err error
	if r.reader, err = ringbuf.NewReader(m); err != nil {
		return nil, errors.Join(fmt.Errorf("read the injections: %w", err), m.Close())
	}
	go r.run()
	return r, nil
}

func (r *ring) add(handle uint64, a *Armed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[handle] = a
}

// forget forgets a fault as soon as its last records were read.
func (r *ring) forget(handle uint64) {
	if r.reader == nil {
		return
	}
	r.mu.Lock()
	r.leaving = append(r.leaving, handle)
	r.mu.Unlock()
	if err := r.reader.Flush(); err != nil {
		r.log.Warn("kernel faults: read the last injections", "error", err)
	}
}

// close delivers what is in the buffer and frees it.
func (r *ring) close() error {
	if r.reader == nil {
		return r.buffer.Close()
	}
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	err := r.reader.Flush()
	if err == nil {
		<-r.ended
	}
	return errors.Join(err, r.reader.Close(), r.buffer.Close())
}

func (r *ring) run() {
	defer close(r.ended)
	for {
		rec, err := r.reader.Read()
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			if r.flushed() {
				return
			}
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			r.log.Error("kernel faults: injections are not reported any more", "error", err)
			return
		default:
			r.handle(rec.RawSample)
		}
	}
}

func (r *ring) flushed() (done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, handle := range r.leaving {
		delete(r.faults, handle)
	}
	r.leaving = nil
	return r.closing
}

func (r *ring) handle(sample []byte) {
	h, err := parseRecord(sample)
	if err != nil {
		r.log.Error("kernel faults", "error", err)
		return
	}
	r.mu.Lock()
	a := r.faults[h.handle]
	r.mu.Unlock()
	if a == nil {
		r.log.Error("kernel faults: an injection of no fault that is known", "handle", h.handle, "pid", h.pid, "comm", h.comm)
		return
	}
	e := Event{
		Time: wallTime(h.time), Fault: a.fault.ID, Rule: a.fault.Rule.Name, Seq: h.seq,
		PID: int(h.pid), TID: int(h.tid), Comm: h.comm, Cgroup: h.cgroup,
		Hook: a.fault.Rule.Kernel.Hook.String(), Function: a.way.function.name, Backend: a.way.backend,
		Error: a.fault.Rule.Kernel.Error.String(),
	}
	if len(h.stack) > 0 {
		e.Stack = symbolize(h.stack)
	}
	r.deliver(e)
}

// wallTime gives the time of day of a time of the boot clock.
func wallTime(boot int64) time.Time {
	now, err := bootTime()
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(boot - now))
}

type symbol struct {
	address uint64
	name    string
}

// kernelSymbols are the kernel's functions, sorted by address. It is read when
// the first stack is to be printed; modules that are loaded later have no names.
var kernelSymbols = sync.OnceValues(func() ([]symbol, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	var all []symbol
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 3 || !strings.Contains("tTwW", w[1]) {
			continue
		}
		if address, err := strconv.ParseUint(w[0], 16, 64); err == nil && address != 0 { // 0: kptr_restrict hides them
			all = append(all, symbol{address, w[2]})
		}
	}
	slices.SortStableFunc(all, func(a, b symbol) int {
		if a.address < b.address {
			return -1
		} else if a.address > b.address {
			return 1
		}
		return 0
	})
	return all, nil
})

// largestFunction is more bytes than any function has.
const largestFunction = 1 << 17

// symbolize names the functions of return addresses; an address stays a number
// where the kernel does not tell its symbols.
func symbolize(stack []uint64) []string {
	symbols, _ := kernelSymbols() // without symbols all are numbers
	names := make([]string, 0, len(stack))
	for _, address := range stack {
		i, exact := slices.BinarySearchFunc(symbols, address, func(s symbol, a uint64) int {
			if s.address < a {
				return -1
			} else if s.address > a {
				return 1
			}
			return 0
		})
		if !exact {
			i--
		}
		// Before the first function, or far behind one: a program of eBPF that was
		// loaded after the symbols were read, a trampoline.
		if i < 0 || address-symbols[i].address > largestFunction {
			names = append(names, fmt.Sprintf("%#x", address))
			continue
		}
		names = append(names, symbols[i].name)
	}
	return names
}
