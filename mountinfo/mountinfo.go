// Package mountinfo reads the mounts that a process sees (proc_pid_mountinfo(5)). Who may mount in a container decides how long the
// lines get: a path has no bound but that of the whole file here, as each blank in it takes four bytes.
package mountinfo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Info is one mount.
type Info struct {
	// ID and Parent are those of mounts, Major and Minor of the device that stat(2) shows for files there.
	ID, Parent, Major, Minor int
	// Root is what of the file system is mounted, Mountpoint where, as the process sees it.
	Root, Mountpoint string
	// Options are the mount's own, Optional is its propagation, such as "shared:5 master:2".
	Options, Optional string
	// FSType has the subtype too, such as "fuse.sshfs".
	FSType, Source string
	// VFSOptions are the file system's.
	VFSOptions string
}

// MaxText is how much is read of one file. A program may have 100,000 mounts (fs.mount-max).
const MaxText = 64 << 20

// ErrTooLong says that there is more.
var ErrTooLong = fmt.Errorf("the list of its mounts is longer than %d MiB: unmount some", MaxText>>20)

// Of lists the mounts that the root directory of a process, or of a thread, leads to.
func Of(pid int) ([]*Info, error) { return open("/proc/" + strconv.Itoa(pid) + "/mountinfo") }

// Own lists the mounts of this thread: others may have gone to another namespace.
func Own() ([]*Info, error) { return open("/proc/thread-self/mountinfo") }

func open(name string) ([]*Info, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	all, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// Read reads what such a file says.
func Read(r io.Reader) ([]*Info, error) { return read(r, MaxText) }

func read(r io.Reader, most int64) ([]*Info, error) {
	limited := &io.LimitedReader{R: r, N: most + 1}
	lines := bufio.NewReaderSize(limited, 64<<10)
	all := []*Info{}
	for {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if limited.N <= 0 {
			return nil, ErrTooLong
		}
		if line != "" {
			m, perr := parse(strings.TrimSuffix(line, "\n"))
			if perr != nil {
				return nil, perr
			}
			all = append(all, m)
		}
		if err != nil {
			return all, nil
		}
	}
}

// parse reads a line: id, parent, major:minor, root, mount point, options, optional fields …, -, type, source, options of the file system.
func parse(line string) (*Info, error) {
	fields := strings.Split(line, " ")
	bad := func(what string) (*Info, error) { return nil, fmt.Errorf("mountinfo line %.200q: %s", line, what) }
	end := 6
	for ; end < len(fields) && fields[end] != "-"; end++ {
	}
	if end+3 >= len(fields) {
		return bad("too few fields")
	}
	m := &Info{Options: fields[5], Optional: strings.Join(fields[6:end], " "), VFSOptions: strings.Join(fields[end+3:], " ")}
	major, minor, ok := strings.Cut(fields[2], ":")
	if !ok {
		return bad("no device number")
	}
	for _, n := range []struct {
		to   *int
		text string
	}{{&m.ID, fields[0]}, {&m.Parent, fields[1]}, {&m.Major, major}, {&m.Minor, minor}} {
		var err error
		if *n.to, err = strconv.Atoi(n.text); err != nil {
			return bad(err.Error())
		}
	}
	for _, s := range []struct {
		to   *string
		text string
	}{{&m.Root, fields[3]}, {&m.Mountpoint, fields[4]}, {&m.FSType, fields[end+1]}, {&m.Source, fields[end+2]}} {
		var ok bool
		if *s.to, ok = unescape(s.text); !ok {
			return bad("a backslash without three octal digits")
		}
	}
	return m, nil
}

// unescape undoes what the kernel does to blanks, tabs, ends of lines, backslashes and # (mangle of fs/proc_namespace.c): \040 for a blank.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		if !found && b.Len() == 0 {
			return s, true
		}
		b.WriteString(before)
		if !found {
			return b.String(), true
		}
		if len(after) < 3 {
			return "", false
		}
		c, err := strconv.ParseUint(after[:3], 8, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		s = after[3:]
	}
}
