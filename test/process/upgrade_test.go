package process

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/programs"
	"github.com/faultgraft/faultgraft/test/soak/recorded"
	"golang.org/x/sys/unix"
)

// olderVersion names a real program of an earlier version, in place of one that is built from this tree.
const olderVersion = "FAULTGRAFT_TEST_OLDER"

// install puts a program where the rig's commands find it, as `make install` does: a new file with the old name.
func (r *rig) install(program string) os.FileInfo {
	r.t.Helper()
	if r.binary == "" {
		// faultgraft is known by its name, and what it leaves by where it lies (leftovers). It goes with the programs.
		r.binary = filepath.Join(binaries.faultgraft+".installed", "faultgraft")
		if err := os.MkdirAll(filepath.Dir(r.binary), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	from, err := os.Open(program)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(r.binary+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(to.Name(), r.binary)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := os.Stat(r.binary)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// older gives the program of an earlier version, and what it calls itself.
func older(t *testing.T) (program, version string) {
	if program = os.Getenv(olderVersion); program != "" {
		return program, ""
	}
	return programs.MustVersion(t, programs.Version{Name: "v0.1.0-before"}), "v0.1.0-before"
}

// allRun says which program all processes with that role run.
func (r *rig) allRun(program os.FileInfo, roles ...string) {
	r.t.Helper()
	for _, role := range roles {
		pids := r.processes(role)
		if len(pids) == 0 {
			r.t.Errorf("no process with role %s", role)
		}
		for _, pid := range pids {
			r.runs(program, role, pid)
		}
	}
}

func (r *rig) runs(program os.FileInfo, role string, pid int) {
	r.t.Helper()
	if st, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || !os.SameFile(st, program) {
		r.t.Errorf("%s %d does not run its keeper's program: %v", role, pid, err)
	}
}

// recorder starts a program that works all the time, and knows what must come of each call; see test/soak/recorder.
type recorder struct {
	*holder
	status string
}

func (r *rig) startRecorder(errors ...string) *recorder {
	r.t.Helper()
	return r.record([]string{"unshare", "--mount", "--propagation", "private"}, errors...)
}

// startRecorderIn has it be another process of a target.
func (r *rig) startRecorderIn(h *holder, errors ...string) *recorder {
	r.t.Helper()
	return r.record([]string{"nsenter", "--target", fmt.Sprint(h.pid()), "--mount"}, errors...)
}

func (r *rig) record(start []string, errors ...string) *recorder {
	r.t.Helper()
	rec := &recorder{status: filepath.Join(r.t.TempDir(), "status")}
	rec.holder = r.launch(append(append(start, programs.MustGo(r.t, "test/soak/recorder"), r.data, rec.status), errors...)...)
	r.t.Cleanup(func() { _ = rec.cmd.Process.Kill() }) // it does not end by itself
	rec.await("works", func(s recorded.Status) bool { return s.Operations > 100 })
	return rec
}

// await waits until what it has seen is so; nothing of it may be wrong.
func (rec *recorder) await(what string, so func(recorded.Status) bool) recorded.Status {
	rec.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := recorded.Read(rec.status)
		switch {
		case err != nil:
			rec.t.Fatal(err)
		case len(s.Wrong) > 0:
			rec.t.Fatalf("%s: %q", what, s.Wrong)
		case so(s):
			return s
		case time.Now().After(end):
			rec.t.Fatalf("not in time: it %s: %+v", what, s)
		}
	}
}

// more waits until it has done more from now on, with or without faults.
func (rec *recorder) more(what string, faults bool) {
	rec.t.Helper()
	now := recorded.Now()
	was := rec.await(what, func(s recorded.Status) bool { return s.MadeAt >= now })
	rec.await(what, func(s recorded.Status) bool {
		return s.Operations > was.Operations+200 && s.Faulty > was.Faulty+20 && (!faults || s.FaultyCall >= now)
	})
}

// noFault has it do more, and none of the calls that it makes from now on may meet a fault.
func (rec *recorder) noFault(what string) {
	rec.t.Helper()
	now := recorded.Now()
	rec.more(what, false)
	rec.await(what, func(s recorded.Status) bool {
		if s.FaultyCall >= now {
			rec.t.Errorf("%s: a call met a fault that was made %s later: %+v", what, time.Duration(s.FaultyCall-now), s)
		}
		return true
	})
}

// An upgrade in place, under load: the program is replaced on disk while its processes run. What stands by a target goes on with
// the version it has, also where it starts other processes; the new command lists it, changes it, survives the death of
// its server with it and takes it off. The target sees no error but those of its rules, and no call is lost or done twice.
func TestUpgradeUnderLoad(t *testing.T) {
	program, version := older(t)
	r := newRig(t)
	before := r.install(program)
	rec := r.startRecorder("EIO")
	mounts := rec.mountinfo()
	// A rule that comes later moves open files: its swapper stops at a step, to be looked at.
	r.env = []string{failing("swapper move", "stop:seize")}
	g := r.inject(rec.holder, r.data, "io error=EIO op=write path="+r.data+"/faulty/** p=20% ttl=10m")
	r.env = nil
	rec.more("has faults by the old version", true)

	after := r.install(programs.MustVersion(t, programs.Version{Name: "v0.2.0-after"}))
	if os.SameFile(before, after) {
		t.Fatal("the program was not replaced")
	}
	if out, err := r.run("recover", "--orphans"); err != nil || out != "" { // ExecStopPost of contrib/systemd
		t.Errorf("recover --orphans: %q %v", out, err)
	}
	if l := r.list(); len(l) != 1 || l[0].ID != g.ID || l[0].State != keeper.StateActive || l[0].Version != version {
		t.Fatalf("the new version lists %+v, not %s of %q", l, g.ID, version)
	}
	rec.more("has faults after the replacement", true)

	cmd, out := r.stopAt("", "update", g.ID, "--keep", "io latency=1ms op=read+write path="+r.data+"/clean/** ttl=10m")
	r.runs(before, "swapper", r.swapper)
	r.goOn(t)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("update by the new version: %v: %s%s", err, out, r.logs())
	}
	rec.more("goes on with changed rules", true)

	r.replaced(syscall.SIGKILL, 1)
	r.oneServer()
	r.allRun(before, "keeper", "server")
	rec.more("has faults by the new server", true)

	// Another target gets the new version, beside the old one.
	h := r.start()
	other := r.inject(h, r.data, "io error=EIO op=fsync ttl=10m")
	if other.Version != "v0.2.0-after" {
		t.Errorf("a new graft is of version %q", other.Version)
	}
	r.recover(other)
	r.recover(g)
	rec.noFault("goes on without a layer")
	if now := rec.mountinfo(); now != mounts {
		t.Errorf("mounts:\n%s\nbefore:\n%s", now, mounts)
	}
}

// And the other way round: a command of an earlier version, that somebody has still open, and a keeper of this one.
func TestEarlierCommand(t *testing.T) {
	program, _ := older(t)
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.binary = program
	if l := r.list(); len(l) != 1 || l[0].ID != g.ID {
		t.Errorf("the earlier version lists %+v", l)
	}
	if out, err := r.run("update", g.ID, "--keep", "io error=ENOSPC op=fallocate ttl=5m"); err != nil {
		t.Errorf("update: %v: %s", err, out)
	}
	h.is("EIO", "fsync f")
	r.recover(g)
	r.binary = ""
	same(t, before, h.snapshot())
}

// A later command asks for something that the keeper's version does not know: it is refused, in words that say what to do, and
// nothing is changed. A rule of which a part was left out would do more than its author said.
func TestCommandOfALaterLanguage(t *testing.T) {
	t.Parallel()
	later := programs.MustVersion(t, programs.Version{Name: "v9.0.0-later", Changes: map[string][2]string{
		"policy/rule.go": {"	Hang bool `json:\"hang,omitempty\"`\n", "	Hang bool `json:\"hang,omitempty\"`\n	Later bool `json:\"later\"`\n"},
	}})
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.binary = later
	for _, args := range [][]string{
		{"update", g.ID, "io error=ENOSPC op=fsync ttl=5m"},
		{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=ENOSPC op=fsync ttl=5m"},
	} {
		out, err := r.run(args...)
		if err == nil || !strings.Contains(err.Error(), `unknown field "later"`) || !strings.Contains(err.Error(), "keeper (faultgraft devel)") || !strings.Contains(err.Error(), "recover") {
			t.Errorf("%s by a later version: %v: %s", args[0], err, out)
		}
		h.is("EIO", "fsync f")
	}
	r.recover(g) // what all versions know works
	h.is("ok", "fsync f")
	r.binary = ""
}

// A server that finds what the dead one left to be of another version does not guess: the layer is taken off
// without a server. This cannot come of an upgrade, since a keeper starts servers from the program that it runs itself.
func TestServerLeavesStateOfAnotherVersion(t *testing.T) {
	r := newRig(t)
	h := r.startFaulted("5m")
	r.oneServer()
	server := r.processes("server")[0]
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", server))
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, fd := range fds {
		var st unix.Stat_t
		if l, err := os.Readlink(fd); err != nil || !strings.HasPrefix(l, "/memfd:faultgraft-state") || unix.Stat(fd, &st) != nil || st.Size != 4096 {
			continue
		}
		f, err := os.OpenFile(fd, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var version [8]byte // the second number of fusefs's stateHead
		_, err = f.ReadAt(version[:], 8)
		if err == nil {
			_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, binary.NativeEndian.Uint64(version[:])+1), 8)
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		changed++
	}
	if changed != 1 {
		t.Fatalf("%d states of layers among what the server has open", changed)
	}
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.reads() // it waits, at most
	r.awaitUnmounted(h.holder, time.Minute)
	h.asBefore()
	r.awaitOff(time.Minute, "still grafted")
	if !slices.ContainsFunc(r.events(), func(e keeper.Event) bool {
		return e.Type == keeper.EventUngraft && strings.Contains(e.Message, "could not be served on")
	}) {
		t.Errorf("the events do not tell why: %+v", r.events())
	}
}
