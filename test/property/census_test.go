package property

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// object is what /proc shows of a place in a process that refers to a file.
type object struct {
	where string // path in /proc
	link  string
	stat  unix.Statx_t
}

func (o object) String() string {
	return fmt.Sprintf("%s -> %s (mount %d, inode %d)", o.where, o.link, o.stat.Mnt_id, o.stat.Ino)
}

// group lists the processes of a process group. Not by their parents: a process
// whose parent ends in this moment has none that was seen. It must be quick: a
// storm goes on until all are seized.
func group(pgid int) (all []int) {
	seen := map[int]bool{}
	for {
		d, err := os.Open("/proc")
		if err != nil {
			return all
		}
		names, err := d.Readdirnames(-1)
		_ = d.Close() // read only
		if err != nil {
			return all
		}
		news := false
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil || seen[pid] {
				continue
			}
			seen[pid], news = true, true
			if got, err := unix.Getpgid(pid); err == nil && got == pgid {
				all = append(all, pid)
			}
		}
		if !news { // a new one may be the child of one that ended before we looked at it
			return all
		}
	}
}

// census finds the objects of processes, in all their threads, that a test wants:
// those that are not there any more when they are looked at do not count.
func census(pids []int, wanted func(*object) bool) (found []object) {
	for _, pid := range pids {
		for _, pattern := range places(pid) {
			links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/%s", pid, pattern))
			for _, l := range links {
				o := object{where: l}
				var err error
				if o.link, err = os.Readlink(l); err != nil || !strings.HasPrefix(o.link, "/") {
					continue
				}
				err = unix.Statx(unix.AT_FDCWD, l, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &o.stat)
				if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EACCES) {
					continue // ended; on a layer without a server it is another error
				}
				if wanted(&o) {
					found = append(found, o)
				}
			}
		}
	}
	return found
}

// places are patterns of all links in /proc/PID: of each thread that has not a table
// and directories in common with one before it.
func places(pid int) []string {
	patterns := []string{"map_files/*"}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	var seen [2][]int
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		const files, fs = 2, 3 // KCMP_FILES, KCMP_FS
		for i, kind := range []uintptr{files, fs} {
			same := func(o int) bool {
				r, _, e := unix.RawSyscall6(unix.SYS_KCMP, uintptr(tid), uintptr(o), kind, 0, 0, 0)
				return e == 0 && r == 0
			}
			if slices.ContainsFunc(seen[i], same) {
				continue
			}
			seen[i] = append(seen[i], tid)
			for _, link := range [][]string{{"fd/*"}, {"cwd", "root"}}[i] {
				patterns = append(patterns, "task/"+t.Name()+"/"+link)
			}
		}
	}
	return patterns
}

// swappable: FIFOs, sockets and devices are left where they are.
func swappable(o *object) bool {
	f := o.stat.Mode & unix.S_IFMT
	return f == unix.S_IFREG || f == unix.S_IFDIR || f == unix.S_IFLNK
}

// gone waits, as long as grace, until a census finds nothing: a descriptor that was in
// flight from one process to another during the swap is dropped by who gets it.
func gone(t testing.TB, what string, grace time.Duration, pids func() []int, wanted func(*object) bool) {
	t.Helper()
	var left []object
	for end := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		if left = census(pids(), wanted); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	var text strings.Builder
	for _, o := range left {
		fmt.Fprintf(&text, "\n  %s", o)
	}
	t.Fatalf("%s: %d objects left:%s", what, len(left), &text)
}

// undisturbed checks that no thread of the processes is traced or stopped. A thread
// is let go by the end of the tracing thread, which may come a moment later.
func undisturbed(t testing.TB, pids func() []int) {
	t.Helper()
	var bad string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if bad = disturbed(pids()); bad == "" {
			return
		}
	}
	t.Fatalf("after the swap: %s", bad)
}

func disturbed(pids []int) string {
	for _, pid := range pids {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				k, v, _ := strings.Cut(line, ":")
				v = strings.TrimSpace(v)
				if k == "State" && strings.ContainsAny(v[:1], "Tt") || k == "TracerPid" && v != "0" {
					return f + ": " + k + " " + v
				}
			}
		}
	}
	return ""
}

// descriptors counts those of this process, which swaps.
func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
