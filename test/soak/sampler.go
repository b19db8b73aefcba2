package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// sampler looks, all along, at what faultgraft's processes take.
type sampler struct {
	s    *soak
	stop chan struct{}
	done chan struct{}

	mu sync.Mutex
	// phases hold the most that a process of each role took, one entry for each phase.
	phases []map[string]use
	// lives are of the processes that there are, by pid; only look has them.
	lives map[int]*life
	// grew is the most that one process of each role has grown in its life.
	grew map[string]growth
}

// life is of one process.
type life struct {
	role  string
	begin time.Time
	// warm is what it took when it had been there for warmUp.
	warm *use
	// slow and stuck: see watchSwapper.
	slow, stuck bool
}

// growth is what a process has at some time more than when it was warm.
type growth struct {
	use
	after time.Duration
}

// Bounds for one process; what is above is a leak, whatever the load.
const (
	maxMemory = 256 << 10 // KiB
	// maxSwapper is that of a swapper: while a target is stopped it collects no garbage below 512 MiB (plugin/keeper/swapper.go).
	maxSwapper     = 640 << 10
	maxDescriptors = 4000
	// maxGrowth is how much memory one process may take beside what it took when it was warm, KiB.
	maxGrowth = 64 << 10
	warmUp    = 20 * time.Second
)

func sample(s *soak) *sampler {
	m := &sampler{s: s, stop: make(chan struct{}), done: make(chan struct{}), phases: []map[string]use{{}}, lives: map[int]*life{}, grew: map[string]growth{}}
	go func() {
		defer close(m.done)
		for {
			select {
			case <-m.stop:
				return
			case <-time.After(2 * time.Second):
				m.look()
			}
		}
	}()
	return m
}

func (m *sampler) look() {
	all, err := m.s.lab.Own("")
	if err != nil {
		m.s.find("look at faultgraft's processes: %v", err)
		return
	}
	there := map[int]*life{}
	for _, p := range all {
		u, ok := uses(p.Pid)
		if !ok {
			continue
		}
		l := m.lives[p.Pid]
		if l == nil || l.role != p.Role { // the kernel uses pids again
			l = &life{role: p.Role, begin: time.Now()}
		}
		there[p.Pid] = l
		m.age(p, u, l)
		most := maxMemory
		if p.Role == lab.RoleSwapper {
			most = maxSwapper
		}
		if u.memory > most || u.descriptors > maxDescriptors {
			m.s.find("process %d (%s) has %d KiB of memory and %d descriptors", p.Pid, p.Role, u.memory, u.descriptors)
		}
		m.mu.Lock()
		phase := m.phases[len(m.phases)-1]
		was := phase[p.Role]
		phase[p.Role] = use{max(was.memory, u.memory), max(was.descriptors, u.descriptors)}
		m.mu.Unlock()
	}
	m.lives = there
}

// age sees how a process has grown, and how long a swapper has been at work.
func (m *sampler) age(p lab.OwnProcess, u use, l *life) {
	since := time.Since(l.begin)
	switch {
	case p.Role == lab.RoleSwapper:
		m.s.watchSwapper(p, since.Round(time.Second), l)
	case since < warmUp:
	case l.warm == nil:
		l.warm = &u
	default:
		now := growth{use{u.memory - l.warm.memory, u.descriptors - l.warm.descriptors}, since}
		m.mu.Lock()
		if was := m.grew[p.Role]; now.memory > was.memory {
			m.grew[p.Role] = now
		}
		m.mu.Unlock()
		if now.memory > maxGrowth {
			m.s.find("process %d (%s) grows: %d KiB of memory when it was warm, %d KiB %s later", p.Pid, p.Role, l.warm.memory, u.memory, (since - warmUp).Round(time.Second))
		}
	}
}

// next begins another phase.
func (m *sampler) next() {
	m.mu.Lock()
	m.phases = append(m.phases, map[string]use{})
	m.mu.Unlock()
}

func (m *sampler) end() {
	close(m.stop)
	<-m.done
}

// most is the most that a process of that role took in any phase.
func (m *sampler) most(role string) (u use) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.phases {
		u = use{max(u.memory, p[role].memory), max(u.descriptors, p[role].descriptors)}
	}
	return u
}

// growthOf is the most that one process of that role has grown in its life.
func (m *sampler) growthOf(role string) growth {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.grew[role]
}

// growth compares the last third of the phases with the first, by their medians: what grows all along grows without an end.
func (m *sampler) growth() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.phases) / 3
	if n < 3 {
		return nil
	}
	var out []string
	for _, role := range []string{lab.RoleAgent, lab.RoleKeeper, lab.RoleServer, lab.RoleHolder} {
		middle := func(phases []map[string]use) use {
			var memory, descriptors []int
			for _, p := range phases {
				memory, descriptors = append(memory, p[role].memory), append(descriptors, p[role].descriptors)
			}
			slices.Sort(memory)
			slices.Sort(descriptors)
			return use{memory[len(memory)/2], descriptors[len(descriptors)/2]}
		}
		first, last := middle(m.phases[:n]), middle(m.phases[len(m.phases)-n:])
		if last.memory > 2*first.memory+16<<10 || last.descriptors > 2*first.descriptors+32 {
			out = append(out, fmt.Sprintf("%s: %d KiB and %d descriptors in the first third of the phases, %d KiB and %d in the last", role,
				first.memory, first.descriptors, last.memory, last.descriptors))
		}
	}
	return out
}
