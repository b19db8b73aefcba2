package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultStateDir is where keepers, the daemon and the event log live.
const DefaultStateDir = "/run/faultgraft"

// stateDir lays the state directory out:
//
//	events.jsonl              what happened on this node, one JSON object a line
//	audit.jsonl               who did what, unless audit.json names another file; see Audit
//	ended/GRAFT.json          what a graft did that is over, until the agent has counted it
//	daemon.sock, daemon.json  the daemon's
//	stopped.json              no fault starts on this node; see Stopped
//	turns                     locked by who has something moved or starts a keeper; see turns
//	keepers/KEY/control.sock  one folder for each keeper; KEY names the target
//	keepers/KEY/keeper.log    what the keeper, its server and its swappers have to say
type stateDir string

func (d stateDir) keepers() string          { return filepath.Join(string(d), "keepers") }
func (d stateDir) keeper(key string) string { return filepath.Join(d.keepers(), key) }
func (d stateDir) socket(key string) string { return filepath.Join(d.keeper(key), "control.sock") }
func (d stateDir) log(key string) string    { return filepath.Join(d.keeper(key), "keeper.log") }
func (d stateDir) events() string           { return filepath.Join(string(d), "events.jsonl") }

// make creates the directory; only root may look into it.
func (d stateDir) make() error {
	if err := os.MkdirAll(d.keepers(), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// lock makes a keeper's folder, and serialises who starts one there and who takes it away; unlock gives it back. It is the folder
// that is locked: who is suspended with it holds up nobody who has to do with another target.
func (d stateDir) lock(key string, wait time.Duration) (unlock func(), err error) {
	pause := firstPause
	for end := time.Now().Add(wait); ; pause = longer(pause) {
		unlock, err := d.tryLock(key)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return unlock, err
		}
		if time.Now().After(end) {
			return nil, d.locked(key)
		}
		time.Sleep(pause)
	}
}

// tryLock is lock for who does not wait; unix.EWOULDBLOCK: somebody else has it.
func (d stateDir) tryLock(key string) (unlock func(), err error) {
	folder := d.keeper(key)
	if err := d.make(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	f, err := os.Open(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, unix.EWOULDBLOCK // it was just taken away
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && isStill(f, folder) {
		return func() { _ = f.Close() }, nil
	}
	_ = f.Close() // nothing was written
	if err == nil || errors.Is(err, unix.EINTR) {
		err = unix.EWOULDBLOCK
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", folder, err)
	}
	return nil, err
}

// locked is the error of who has waited for a keeper's folder.
func (d stateDir) locked(key string) error {
	var inode unix.Stat_t
	if err := unix.Stat(d.keeper(key), &inode); err != nil {
		return fmt.Errorf("lock %s: %w", d.keeper(key), err)
	}
	return fmt.Errorf("lock %s: %s", d.keeper(key), whoLocks(&inode))
}

// isStill: the open folder is the one at its path.
func isStill(f *os.File, path string) bool {
	is, err := f.Stat()
	there, serr := os.Stat(path)
	return err == nil && serr == nil && os.SameFile(is, there)
}

// whoLocks says which process has a flock on a file, and what can be done.
func whoLocks(inode *unix.Stat_t) string {
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return "another faultgraft command holds it"
	}
	pid, ok := flockOf(string(locks), fmt.Sprintf("%02x:%02x:%d", unix.Major(inode.Dev), unix.Minor(inode.Dev), inode.Ino))
	if !ok {
		return "another faultgraft command held it until just now, try again"
	}
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
	return fmt.Sprintf("process %d (%s) holds it: %s", pid, strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte(" ")))), whyStill(pid))
}

// flockOf finds who has a flock on an inode in proc_locks(5); a process of another PID namespace has number 0 there.
func flockOf(locks, inode string) (pid int, ok bool) {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != inode {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return pid, true
		}
	}
	return 0, false
}

// keys lists the keepers that have a folder.
func (d stateDir) keys() ([]string, error) {
	entries, err := os.ReadDir(d.keepers())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var keys []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

// Purge removes a state directory in which no keeper lives any more: what the
// daemon and the keepers wrote, and nothing else.
func Purge(dir string) error {
	d := stateDir(dir)
	keys, err := d.keys()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if alive(d.socket(k)) {
			return fmt.Errorf("purge %s: keeper %s still runs; recover its grafts first", dir, k)
		}
	}
	names := []string{"events.jsonl", "events.jsonl.1", "daemon.json", "policies.json", "stopped.json", "daemon.log", "daemon.log.1", "counters.json", "counters.json.corrupt", "audit.json", "audit.jsonl", filepath.Base(d.turns().file)}
	if agent := filepath.Join(dir, "daemon.sock"); !alive(agent) { // it was killed, or for want of memory could not tidy up
		names = append(names, filepath.Base(agent))
	}
	for _, pattern := range []string{"daemon.json.corrupt-*", "policies.json.corrupt-*", "audit.json.corrupt-*", "audit.jsonl.*"} {
		found, err := filepath.Glob(filepath.Join(escapeGlob(dir), pattern))
		if err != nil {
			return err
		}
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	left, err := temporary(dir) // of processes that were killed
	if err != nil {
		return err
	}
	for _, f := range left {
		names = append(names, filepath.Base(f))
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, dir := range []string{d.keepers(), d.ended()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

var globSpecials = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func escapeGlob(path string) string { return globSpecials.Replace(path) }
