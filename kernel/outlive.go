package kernel

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cilium/ebpf"
	"github.com/faultgraft/faultgraft/policy"
	"golang.org/x/sys/unix"
)

// Pinned is a fault that has outlived the process that armed it.
type Pinned struct {
	ID string `json:"id"`
	// Rule, Cgroup and what follows are zero for one that was being armed when
	// its process died: it fails nothing, and End takes it away.
	Rule      policy.Rule `json:"rule"`
	Cgroup    Cgroup      `json:"cgroup"`
	Backend   string      `json:"backend"`
	Functions []string    `json:"functions"`
	Note      string      `json:"note,omitempty"`
	Started   time.Time   `json:"started"`
	Ends      time.Time   `json:"ends"`
	Counters  Counters    `json:"counters"`
	// Owner is that of the Fault; empty: an earlier version armed it, which did not say.
	Owner string `json:"owner,omitempty"`
	// Foreign is why nobody of this version can take the fault over or count it: another version of faultgraft armed it. It
	// goes on until Ends, and can be ended. What of it could not be read is zero; Ends too, for one that is to be ended now.
	Foreign error `json:"-"`

	dir  string
	memo memo
}

// memoVersion is the form of a memo and of the maps beside it: targetState and the records in the ring.
const memoVersion = 1

// memo is what is kept in bpffs of a fault that outlives its process, beside
// its program and maps. Another version of faultgraft may read it: Version, Started
// and Ends, and of Fault its ID, Rule, Cgroup and Owner, keep their names and meaning.
type memo struct {
	// Version is memoVersion; those before it was written down have 0, and are of version 1.
	Version  int    `json:"version"`
	Fault    Fault  `json:"fault"`
	Backend  string `json:"backend"`
	Function string `json:"function"`
	Note     string `json:"note"`
	Handle   uint64 `json:"handle"`
	Started  int64  `json:"started"` // by bootTime
	Ends     int64  `json:"ends"`
	Bio      bool   `json:"bio"`
}

// The names in the directory of a fault. Links of the call chain have a number
// behind theirs.
const (
	pinMemo    = "fault"
	pinTargets = "targets"
	pinLevels  = "levels"
	pinRing    = "ring"
	pinLink    = "link"
	pinChain   = "chain"
)

var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)

// pinName gives the name of a fault's directory. bpffs takes no dots
// (kernel/bpf/inode.c, bpf_lookup).
func pinName(id string) string {
	if plainName.MatchString(id) {
		return id
	}
	return "0x" + hex.EncodeToString([]byte(id))
}

// pin keeps the instance in bpffs, but for its link. That comes last, when the fault
// is in force, so that what is found with a link is whole.
func (i *instance) pin(pinDir string, m memo) (err error) {
	if err := needBPFFS(pinDir); err != nil {
		return err
	}
	i.pins = filepath.Join(pinDir, pinName(m.Fault.ID))
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("pin the fault in %s: %w", i.pins, err), unpin(i.pins))
			i.pins = ""
		}
	}()
	if err := os.MkdirAll(pinDir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(i.pins, 0o700); errors.Is(err, fs.ErrExist) {
		dir := i.pins
		i.pins = "" // it is another's
		return fmt.Errorf("%s is there already: end the fault that it holds (faultgraft recover %s)", dir, m.Fault.ID)
	} else if err != nil {
		return err
	}
	atPin.Pass("folder")
	m.Version = memoVersion
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	kept, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "faultgraft_memo", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: text}},
	})
	if err != nil {
		return fmt.Errorf("map for the fault: %w", err)
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	for name, m := range map[string]*ebpf.Map{pinMemo: kept, pinTargets: i.targets, pinLevels: i.levels, pinRing: i.ring.buffer} {
		if err := m.Pin(filepath.Join(i.pins, name)); err != nil {
			return err
		}
	}
	atPin.Pass("maps")
	for n, l := range i.filters.links() {
		if err := l.Pin(filepath.Join(i.pins, fmt.Sprintf("%s%d", pinChain, n))); err != nil {
			return err
		}
	}
	atPin.Pass("chain")
	return nil
}

// pinLink has what pin has kept outlive this process.
func (i *instance) pinLink() error {
	if err := i.link.Pin(filepath.Join(i.pins, pinLink)); err != nil {
		return fmt.Errorf("pin the fault in %s: %w", i.pins, err)
	}
	atPin.Pass("linked")
	return nil
}

// unpin takes a fault's directory away, the program that fails first: with its
// last name a link is detached.
func unpin(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	errs := []error{remove(filepath.Join(dir, pinLink))}
	atDrop.Pass("unlinked")
	for _, n := range names {
		errs = append(errs, remove(filepath.Join(dir, n.Name())))
	}
	atDrop.Pass("emptied")
	errs = append(errs, remove(dir))
	atDrop.Pass("unpinned")
	return errors.Join(errs...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// needBPFFS looks whether the directory is, or would be, in bpffs.
func needBPFFS(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, unix.ENOENT) && at != "/" && at != "." {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at the file system of %s: %w", at, err)
		}
		if uint32(st.Type) != unix.BPF_FS_MAGIC {
			return fmt.Errorf("a fault that outlives its process must be kept in bpffs, and %s is not in one: mount -t bpf bpf /sys/fs/bpf", dir)
		}
		return nil
	}
}

// Expired reports whether the fault's ttl is over, or whether it is not in force: its
// process died while it was arming or ending it.
func (p Pinned) Expired() bool { return !time.Now().Before(p.Ends) }

// End takes the fault out of the kernel. Where a process holds its program too, as the one that armed it does, that fails nothing any more.
func (p Pinned) End() error {
	if err := errors.Join(p.takeOut(), unpin(p.dir)); err != nil {
		return fmt.Errorf("end kernel fault %s: %w", p.ID, err)
	}
	return nil
}

// takeOut takes the cgroup out of the program's map.
func (p Pinned) takeOut() error {
	if p.Cgroup.ID == 0 {
		return nil // it is not known, or the fault was never in force
	}
	targets, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, pinTargets), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err = targets.Delete(p.Cgroup.ID); errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil // whoever was ending it was killed
	}
	return errors.Join(err, targets.Close())
}

// armOutliving arms a fault with a program of its own that stays when this
// process ends.
func (in *Injector) armOutliving(a *Armed) error {
	if err := needBPFFS(in.options.PinDir); err != nil {
		return err
	}
	i, err := in.newInstance(a.fault)
	if err != nil {
		return err
	}
	now, err := bootTime()
	if err == nil {
		v := newTarget(a.fault.Rule.Trigger, a.fault.Age, now, a.handle)
		err = i.pin(in.options.PinDir, memo{
			Fault: a.fault, Backend: i.way.backend, Function: i.way.function.name, Note: i.way.note,
			Handle: a.handle, Started: now - int64(a.fault.Age), Ends: v.End, Bio: i.way.scope == scopeBio,
		})
	}
	if err == nil {
		err = a.enter(i)
	}
	if err == nil {
		atPin.Pass("entered")
		err = i.pinLink()
	}
	if err != nil {
		return errors.Join(err, i.close())
	}
	in.instances = append(in.instances, i)
	return nil
}

// Adopt takes over a fault that Outliving found: it goes on as it was, with its
// counters and clock, and its events (also those since its process died) come
// here. It still outlives this process.
func (in *Injector) Adopt(p Pinned) (*Armed, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	a, err := in.adopt(p)
	if err != nil {
		return nil, fmt.Errorf("adopt kernel fault %s: %w", p.ID, err)
	}
	in.armed[a.fault.ID] = a
	return a, nil
}

func (in *Injector) adopt(p Pinned) (_ *Armed, err error) {
	switch {
	case in.closed:
		return nil, errClosed
	case p.Foreign != nil:
		return nil, p.Foreign
	case p.memo.Handle == 0:
		return nil, errors.New("it was never in force: end it")
	case in.armed[p.ID] != nil:
		return nil, errors.New("there is a fault of that id already")
	}
	i := &instance{
		way:     way{backend: p.Backend, function: target{name: p.memo.Function}, note: p.Note},
		members: map[uint64]*Armed{}, pins: p.dir, filters: &filters{}, own: true,
	}
	a := &Armed{fault: p.memo.Fault, injector: in, handle: p.memo.Handle, way: i.way, ends: p.memo.Ends, instance: i}
	i.members[a.fault.Cgroup.ID] = a
	defer func() {
		if err != nil {
			err = errors.Join(err, i.release())
		}
	}()
	if i.targets, err = ebpf.LoadPinnedMap(filepath.Join(p.dir, pinTargets), nil); err != nil {
		return nil, err
	}
	if i.levels, err = ebpf.LoadPinnedMap(filepath.Join(p.dir, pinLevels), nil); err != nil {
		return nil, err
	}
	buffer, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, pinRing), nil)
	if err != nil {
		return nil, err
	}
	if i.ring, err = readRing(buffer, in.options.OnEvent, in.options.Log, map[uint64]*Armed{a.handle: a}); err != nil {
		return nil, err
	}
	in.instances = append(in.instances, i)
	return a, nil
}
