package kernel

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A container with layers is checkpointed. Over a path of its own root CRIU refuses: it does not know FUSE. Over a volume, which the runtime says
// is mounted from outside, it takes the layer for the volume: a checkpoint works, and what is restored from it has no faults and the files below.
// Whatever comes of it, the target goes on with its faults.
func TestCheckpointWithALayer(t *testing.T) {
	needCRIU(t)
	s := startStoppable(t, "layer")
	s.graft("/own")
	s.whole("ok", "EIO")
	_, err := s.checkpoint("--leave-running")
	if err == nil || !strings.Contains(err.Error(), "/own") {
		t.Errorf("a layer in the container's root: %v", err)
	}
	t.Log(err)
	s.whole("ok", "EIO")
	s.active()
	s.recover()

	s.ok("flock data")
	s.graft("/data")
	s.whole("EIO", "ok")
	images := s.dump("--leave-running") // without --file-locks: locks of files on a layer are not to be seen
	s.whole("EIO", "ok")
	s.active()
	s.remove()
	await(t, "the graft ends with its target", func() bool { return len(s.layers()) == 0 })
	s.restore(images)
	s.whole("ok", "ok")
	if m := s.mounts(); strings.Contains(m, "fuse") {
		t.Errorf("restored with a layer:\n%s", m)
	}
	if s.locked() {
		t.Error("locks of files on a layer are restored: tell docs/what-happens-when.md")
	}
	s.graft("/data")
	s.whole("EIO", "ok")
	s.recover()
	s.whole("ok", "ok")
}

// locked: somebody has a lock on the file at /data.
func (s *stoppable) locked() bool {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.volume, "f"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err != nil && err != unix.EWOULDBLOCK {
		s.t.Fatal(err)
	}
	return err != nil
}

// After recover a checkpoint has nothing of faultgraft's in it, neither mounts nor code, and the locks that the target has; what is restored from it goes on
// where it was, and can be grafted again.
func TestCheckpointAfterRecover(t *testing.T) {
	needCRIU(t)
	s := startStoppable(t, "recovered")
	s.ok("flock data")
	maps, mounts, code := s.maps(), s.mounts(), vdso(t, s.pid())
	s.graft("/data")
	s.whole("EIO", "ok")
	s.recover()
	s.whole("ok", "ok")
	if now := s.maps(); now != maps {
		t.Errorf("maps before\n%s\nafter\n%s", maps, now)
	}
	if now := s.mounts(); now != mounts {
		t.Errorf("mounts before\n%s\nafter\n%s", mounts, now)
	}
	if !bytes.Equal(vdso(t, s.pid()), code) {
		t.Error("the vdso is another")
	}
	if _, err := s.checkpoint("--leave-running"); err == nil || !strings.Contains(err.Error(), "file locks") {
		t.Errorf("CRIU does not see the lock that the target has again: %v", err)
	}
	s.whole("ok", "ok")
	images := s.dump("--file-locks")
	pages, err := os.ReadFile(images + "/pages-1.img")
	if err != nil {
		t.Fatal(err)
	}
	// it has the vdso as well
	for page := range slices.Chunk(code, os.Getpagesize()) {
		if !bytes.Contains(pages, page) {
			t.Error("the images have another page of the vdso than the target had before the graft")
		}
	}
	s.restore(images)
	s.whole("ok", "ok")
	if !s.locked() {
		t.Error("the target's lock was not restored")
	}
	s.graft("/data")
	s.whole("EIO", "ok")
	s.recover()
	s.whole("ok", "ok")
}

// A checkpoint that comes in the middle of a graft is refused by CRIU, for which there is no thread to trace. The graft is made, or refused in words, and the
// target goes on either way; then a checkpoint works.
func TestCheckpointInMidGraft(t *testing.T) {
	needCRIU(t)
	s := startStoppable(t, "midgraft")
	swapper, end := s.stopSwapper("/data")
	if _, err := s.checkpoint("--leave-running"); err == nil || !strings.Contains(err.Error(), "seize") {
		t.Errorf("a checkpoint of what is traced: %v", err)
	}
	if err := unix.Kill(swapper, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// the code of a swapper that is silent for 3 s gives its thread back
	if err := <-end; err != nil {
		if !strings.Contains(err.Error(), "nothing is changed") && !strings.Contains(err.Error(), "nothing was changed") {
			t.Error(err)
		}
		await(t, "there is no layer", func() bool { return len(s.layers()) == 0 })
		s.whole("ok", "ok")
		s.graft("/data")
	}
	s.whole("EIO", "ok")
	s.active()
	s.dump("--leave-running")
	s.whole("EIO", "ok")
	s.recover()
	s.whole("ok", "ok")
}

// A graft that comes while CRIU has the target is refused in words; the checkpoint is made, and then the graft.
func TestGraftInMidCheckpoint(t *testing.T) {
	needCRIU(t)
	s := startStoppable(t, "midcheckpoint")
	dir := t.TempDir()
	// CRIU runs it with its tasks stopped still
	script := filepath.Join(dir, "script")
	write(t, script, fmt.Sprintf("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || { : >%[1]s/held; read -r go <%[1]s/go; }\n", dir))
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	// not by runc: CRIU refuses to run scripts of others for who calls it as a service
	cmd := exec.Command("criu", "dump", "--tree", itoa(s.pid()), "--images-dir", t.TempDir(), "--shell-job", "--external", "mnt[]:m", "--leave-running", "--action-script", script)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	goOn, err := os.OpenFile(dir+"/go", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = goOn.Close() }) // the script reads an end of file then
	await(t, "CRIU has the target", func() bool {
		select {
		case err := <-end:
			t.Fatalf("criu dump: %v: %s", err, &said)
		default:
		}
		_, err := os.Stat(dir + "/held")
		return err == nil
	})
	out, err := s.faultgraft("inject", "--pid", itoa(s.pid()), "--path", "/data", fsyncFails)
	if err == nil || !strings.Contains(out, "is traced by process") || !strings.Contains(out, "(criu)") || !strings.Contains(out, "nothing was changed") {
		t.Errorf("a graft while CRIU has the target: %q, %v", out, err)
	}
	if _, err := fmt.Fprintln(goOn, "go"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-end:
		if err != nil {
			t.Fatalf("criu dump: %v: %s", err, &said)
		}
	case <-time.After(patience):
		t.Fatal("criu dump does not end")
	}
	s.whole("ok", "ok")
	s.graft("/data")
	s.whole("EIO", "ok")
	s.recover()
}

// A container with kernel faults can be checkpointed, and goes on with them. They belong to its cgroup: what is restored runs in a new one, and has none until
// there is another fault.
func TestCheckpointWithKernelFaults(t *testing.T) {
	needCRIU(t)
	n := startNode(t)
	s := startStoppable(t, "kernelfaults")
	inject := func() {
		t.Helper()
		if out, err := n.faultgraft("inject", "--pid", itoa(s.pid()), "--kernel", "hook=lsm:inode_create error=ENOSPC ttl=1h"); err != nil {
			t.Fatalf("inject: %v: %s", err, out)
		}
		s.is("ENOSPC", "open new /own/new rdwr,creat")
	}
	inject()
	s.dump("--leave-running")
	s.is("ENOSPC", "open new /own/new rdwr,creat")
	images := s.dump()
	await(t, "the fault ends with its cgroup", func() bool { return len(n.ps()) == 0 })
	s.restore(images)
	s.whole("ok", "ok")
	s.ok("open new /own/new rdwr,creat")
	s.ok("unlink /own/new")
	inject()
}
