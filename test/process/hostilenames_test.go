package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Names that look like something else in what faultgraft reads and prints, names as long as they get, and
// attributes as large as they get: each file keeps what it has, gets its fault, and no name adds a line to
// a report or moves a terminal's cursor.
func TestHostileNames(t *testing.T) {
	r := newRig(t)
	names := []string{
		strings.Repeat("n", 255), strings.Repeat("\xff", 255), "new\nline", "tab\tand blank", "esc\x1b[2J\x1b[1;1H", "gone (deleted)", `back\040slash`, "quote\"'", " ", "*", "{a,b}",
		"\u202egnp", "-rf", "%s%n", "socket:[1]", "fuse.faultgraft",
	}
	dir := filepath.Join(r.data, strings.Repeat("d", 255), "line\nbreak (deleted)")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	value := strings.Repeat("v", 2000)
	var open []string
	for _, n := range names {
		f, err := os.Create(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("of " + n); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fsetxattr(int(f.Fd()), "user."+strings.Repeat("x", 250), []byte(value), 0); err != nil && err != unix.ENOTSUP {
			t.Fatal(err)
		}
		open = append(open, f.Name())
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h := r.hold(open)
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	if len(g.Report.Skipped) > 0 {
		t.Errorf("not moved: %+v", g.Report.Skipped)
	}
	for i := range open {
		fd := fmt.Sprintf("/proc/%d/fd/%d", h.pid(), 3+i)
		var s unix.Statfs_t
		if err := unix.Statfs(fd, &s); err != nil || s.Type != unix.FUSE_SUPER_MAGIC {
			t.Errorf("%q is not on the layer: type %#x, %v", names[i], s.Type, err)
		}
		b, err := os.ReadFile(filepath.Join(fmt.Sprintf("/proc/%d/root", h.pid()), dir, names[i]))
		if err != nil || string(b) != "of "+names[i] {
			t.Errorf("%q reads %q, %v", names[i], b, err)
		}
		got := make([]byte, 4096)
		n, err := unix.Getxattr(filepath.Join(fmt.Sprintf("/proc/%d/root", h.pid()), dir, names[i]), "user."+strings.Repeat("x", 250), got)
		if err == nil && string(got[:n]) != value {
			t.Errorf("%q has an attribute of %d bytes", names[i], n)
		}
	}
	for _, args := range [][]string{{"ps"}, {"show", g.ID}, {"events"}} {
		out, err := r.run(args...)
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if strings.ContainsAny(out, "\x1b\x07") {
			t.Errorf("%v prints control characters: %q", args, out)
		}
	}
	r.recover(g)
	for i := range open {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.pid(), 3+i)); err != nil || to != filepath.Join(dir, names[i]) {
			t.Errorf("%q is %q, %v", names[i], to, err)
		}
	}
}

// hold starts a holder that has files open from descriptor 3 on.
func (r *rig) hold(paths []string) *holder {
	r.t.Helper()
	if _, err := exec.LookPath("bash"); err != nil { // other shells know descriptors up to 9 only
		r.t.Skip(err)
	}
	var script strings.Builder
	for i, p := range paths {
		fmt.Fprintf(&script, "exec %d<>'%s'\n", 3+i, strings.ReplaceAll(p, "'", `'\''`))
	}
	return r.startWith("unshare", "--mount", "--propagation", "private", "bash", "-c", script.String()+"exec "+binaries.holder)
}
