package plugin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// memoryFile is the agent's memory in the state directory.
const memoryFile = "daemon.json"

// memory remembers which rules were already applied to which task, over the end
// of the agent: a rule whose time is up, or that a person took off, is not
// applied to the same task again. Saved at each change, as one file that is
// replaced whole.
type memory struct {
	path string

	mu    sync.Mutex
	tasks map[Key]task
}

// task is one run of a container: a restart is another task.
type task struct {
	PID       int           `json:"pid"`
	StartTime uint64        `json:"startTime"`
	Rules     []appliedRule `json:"rules"`
}

// appliedRule is one rule of a task. Done is false between the moment before a
// graft is asked for and the moment it is there.
type appliedRule struct {
	// Policy and Run are those of policy.Rule.
	Policy string    `json:"policy,omitempty"`
	Run    uint64    `json:"run,omitempty"`
	Name   string    `json:"name"`
	Text   string    `json:"text"`
	Since  time.Time `json:"since"`
	Done   bool      `json:"done"`
	// Graft is the id of the graft that it is in.
	Graft string `json:"graft,omitempty"`
	// Kernel marks a kernel rule. Over: its time is up, or a person ended it. One that
	// is not over is armed again by the next agent, for the rest of its time.
	Kernel bool `json:"kernel,omitempty"`
	Over   bool `json:"over,omitempty"`
}

// memoryVersion is the form of the file.
const memoryVersion = 1

type memoryForm struct {
	Version int         `json:"version"`
	Tasks   []savedTask `json:"tasks"`
}

type savedTask struct {
	Key
	task
}

// loadMemory reads the file of the state directory. A file that cannot be
// understood is set aside; warning then says where it went.
func loadMemory(dir string, now time.Time) (m *memory, warning, err error) {
	m, perr, err := readMemory(dir)
	if err != nil {
		return nil, nil, err
	}
	if perr != nil {
		aside := fmt.Sprintf("%s.corrupt-%d", m.path, now.Unix())
		if err := os.Rename(m.path, aside); err != nil {
			return nil, nil, fmt.Errorf("%w; and it cannot be set aside: %w", perr, err)
		}
		return m, fmt.Errorf("%w; set aside as %s, rules whose time was up may be applied again", perr, aside), nil
	}
	return m, nil, nil
}

// readMemory reads the file of the state directory; none is an empty memory. perr is
// about a file that cannot be understood.
func readMemory(dir string) (m *memory, perr, err error) {
	m = &memory{path: filepath.Join(dir, memoryFile), tasks: map[Key]task{}}
	b, err := os.ReadFile(m.path)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the agent's memory: %w", err)
	}
	form, perr := parseMemory(b)
	if perr != nil {
		return m, fmt.Errorf("the agent's memory %s: %w", m.path, perr), nil
	}
	for _, t := range form.Tasks {
		if start, err := startTime(t.PID); err == nil && start == t.StartTime {
			m.tasks[t.Key] = t.task
		}
	}
	return m, nil, nil
}

func parseMemory(b []byte) (memoryForm, error) {
	var form memoryForm
	err := keeper.DecodeForm(b, memoryVersion, &form)
	return form, err
}

// rules returns what was applied to a task.
func (m *memory) rules(k Key, pid int, start uint64) []appliedRule {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tasks[k]; t.PID == pid && t.StartTime == start {
		return slices.Clone(t.Rules)
	}
	return nil
}

// set replaces the io rules that were applied to a task, and saves.
func (m *memory) set(k Key, pid int, start uint64, rules []appliedRule) error {
	return m.put(k, pid, start, rules, false)
}

// setKernel replaces the kernel rules that were applied to a task, and saves.
func (m *memory) setKernel(k Key, pid int, start uint64, rules []appliedRule) error {
	return m.put(k, pid, start, rules, true)
}

// put replaces the rules of one kind and leaves those of the other.
func (m *memory) put(k Key, pid int, start uint64, rules []appliedRule, kernel bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	rules = slices.Clone(rules)
	if t := m.tasks[k]; t.PID == pid && t.StartTime == start {
		for _, a := range t.Rules {
			if a.Kernel != kernel {
				rules = append(rules, a)
			}
		}
	}
	if len(rules) == 0 {
		delete(m.tasks, k)
	} else {
		m.tasks[k] = task{PID: pid, StartTime: start, Rules: rules}
	}
	return m.save()
}

// over marks a kernel rule of a task, if it is remembered, and saves.
func (m *memory) over(k Key, pid int, start uint64, rule ruleKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[k]
	if t.PID != pid || t.StartTime != start {
		return nil
	}
	for i, a := range t.Rules {
		if a.Kernel && a.key() == rule {
			t.Rules[i].Over = true
		}
	}
	return m.save()
}

// reopen has the rules of these grafts count as asked for and not yet there: they were
// taken off, and are to be applied again as long as their time is not up.
func (m *memory) reopen(grafts []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for _, t := range m.tasks {
		for i, a := range t.Rules {
			if a.Done && slices.Contains(grafts, a.Graft) {
				t.Rules[i].Done, t.Rules[i].Graft, changed = false, "", true
			}
		}
	}
	if !changed {
		return nil
	}
	return m.save()
}

// unsettled reports whether an agent that has ended was about to do something, or held kernel faults.
func (m *memory) unsettled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tasks {
		if slices.ContainsFunc(t.Rules, func(a appliedRule) bool { return a.Kernel && !a.Over || !a.Kernel && !a.Done }) {
			return true
		}
	}
	return false
}

// settle takes it in that these grafts are there, which an agent may have died to
// remember; with kernel, that the kernel rules are over. A rule of a graft that is
// remembered as done is not applied again when the graft has gone.
func (m *memory) settle(grafts []keeper.Graft, kernel bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for k, t := range m.tasks {
		c := &Container{Key: k, PID: t.PID, StartTime: t.StartTime}
		for i := range t.Rules {
			a := &t.Rules[i]
			if a.Kernel {
				changed = changed || kernel && !a.Over
				a.Over = a.Over || kernel
				continue
			}
			for _, g := range graftsOf(grafts, c, nil) {
				if !a.Done && g.Origin != keeper.OriginUser && slices.ContainsFunc(g.Rules, func(r keeper.RuleStatus) bool { return keyOfStatus(r) == a.key() }) {
					a.Done, a.Graft, changed = true, g.ID, true
				}
			}
		}
	}
	if !changed {
		return nil
	}
	return m.save()
}

// forget drops a container's task, if there is one, and saves.
func (m *memory) forget(k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.tasks[k]; !ok {
		return nil
	}
	delete(m.tasks, k)
	return m.save()
}

// save writes the file; with nothing to remember there is none.
func (m *memory) save() error {
	if len(m.tasks) == 0 {
		if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the agent's memory: %w", err)
		}
		return nil
	}
	form := memoryForm{Version: memoryVersion, Tasks: make([]savedTask, 0, len(m.tasks))}
	for k, t := range m.tasks {
		form.Tasks = append(form.Tasks, savedTask{k, t})
	}
	slices.SortFunc(form.Tasks, func(a, b savedTask) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	b, err := json.Marshal(form)
	if err != nil {
		return fmt.Errorf("the agent's memory: %w", err)
	}
	return keeper.ReplaceFile(m.path, append(b, '\n'))
}

// startTime is when a process started, as graft.Stat has it; os.ErrNotExist: it has ended.
func startTime(pid int) (uint64, error) {
	s, err := graft.ReadStat(pid)
	if err == nil && s.Ended() {
		err = fmt.Errorf("pid %d has ended: %w", pid, os.ErrNotExist)
	}
	return s.StartTime, err
}
