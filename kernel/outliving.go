package kernel

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
)

// What others left in the kernel is read here.

// Outliving lists the faults pinned in a directory of bpffs (empty:
// DefaultPinDir), also those whose ttl is over and that only wait to be ended.
// No directory is no faults.
func Outliving(pinDir string) ([]Pinned, error) {
	if pinDir == "" {
		pinDir = DefaultPinDir
	}
	entries, err := os.ReadDir(pinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("faults that outlive their process: %w", err)
	}
	var all []Pinned
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// One that cannot be read hides no other, and can be ended.
		p := readPinned(filepath.Join(pinDir, e.Name()))
		all = append(all, p)
	}
	return all, nil
}

func readPinned(dir string) Pinned {
	p := Pinned{ID: filepath.Base(dir), dir: dir}
	if name, ok := cutHex(p.ID); ok {
		p.ID = name
	}
	if _, err := os.Lstat(filepath.Join(dir, pinLink)); errors.Is(err, fs.ErrNotExist) {
		return p // not whole: no link, so nothing that is attached for good
	}
	kept, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinMemo), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		p.Foreign = err
		return p
	}
	defer func() { _ = kept.Close() }() // only read
	text, err := kept.LookupBytes(uint32(0))
	if err == nil {
		err = p.understand(text)
	}
	if err != nil {
		p.Foreign = err
		return p
	}
	p.Counters, err = readCounters(dir, p.Cgroup)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		p.Ends = time.Time{} // whoever was ending it was killed
		return p
	}
	p.Foreign = err
	return p
}

// understand takes from a memo what it says. An error is about the memo of another version, of which it takes what all have.
func (p *Pinned) understand(text []byte) error {
	var all struct {
		Version       int
		Started, Ends int64
		Fault         struct {
			ID     string
			Cgroup Cgroup
			Owner  string
		}
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("what is kept of it: %w", err)
	}
	if all.Fault.ID != "" {
		p.ID = all.Fault.ID
	}
	p.Cgroup, p.Owner = all.Fault.Cgroup, all.Fault.Owner
	if all.Ends > 0 {
		p.Started, p.Ends = wallTime(all.Started), wallTime(all.Ends)
	}
	if all.Version > memoVersion {
		return fmt.Errorf("it is of a later version of faultgraft: its form is %d, this one knows %d", all.Version, memoVersion)
	}
	var m memo
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("what is kept of it: %w", err)
	}
	p.memo = m
	p.Rule, p.Backend, p.Functions, p.Note = m.Fault.Rule, m.Backend, []string{m.Function}, m.Note
	return nil
}

func readCounters(dir string, c Cgroup) (Counters, error) {
	targets, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinTargets), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return Counters{}, err
	}
	defer func() { _ = targets.Close() }() // only read
	if targets.ValueSize() != targetSize {
		return Counters{}, fmt.Errorf("it is of another version of faultgraft: %d bytes are counted in, not %d", targets.ValueSize(), targetSize)
	}
	var v targetState
	if err := targets.Lookup(c.ID, &v); err != nil {
		return Counters{}, err
	}
	return v.counters(), nil
}

func cutHex(name string) (string, bool) {
	if len(name) < 2 || name[:2] != "0x" {
		return "", false
	}
	b, err := hex.DecodeString(name[2:])
	return string(b), err == nil
}
