package hook

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// wrapped has the runtime's commands go through the wrapper, which is linked as runc.
func (r *runtime) wrapped() {
	r.Helper()
	r.Setenv("FAULTGRAFT_RUNTIME", r.runc)
	r.Setenv("FAULTGRAFT_STATE", r.state)
	link := filepath.Join(r.dir, "wrapper", "runc")
	if err := os.Mkdir(filepath.Dir(link), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.Symlink(r.faultgraft, link); err != nil {
		r.Fatal(err)
	}
	r.runc = link
}

// A container that is not containerd's passes through the wrapper with all that
// it was given: descriptors at their numbers, standard output, exit status.
func TestWrapperByHand(t *testing.T) {
	r := newRuntime(t)
	r.wrapped()
	dir := r.bundle("c", false, "cat <&3 >/out/three; echo said; exec sleep 1000", nil)
	given, err := os.Open(filepath.Join(dir, "volume/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = given.Close() }()
	out, err := os.Create(filepath.Join(r.dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	create := exec.CommandContext(r.ctx, "unshare", "-m", "--propagation", "private", r.runc, "--root", r.root, "create", "--preserve-fds", "1", "--bundle", dir, "c")
	create.ExtraFiles, create.Stdout, create.Stderr = []*os.File{given}, out, out
	if err := create.Run(); err != nil {
		t.Fatal(err)
	}
	r.must("start", "c")
	r.await("the program has read from the descriptor that it was given", func() bool {
		three, _ := os.ReadFile(filepath.Join(dir, "rootfs/out/three")) // it comes
		said, _ := os.ReadFile(out.Name())
		return string(three) == content && string(said) == "said\n"
	})
	if s := r.must("state", "c"); !strings.Contains(s, `"status": "running"`) {
		t.Errorf("state: %s", s)
	}
	if out, err := r.oci("exec", "c", "/bin/sh", "-c", "exit 7"); exitCode(err) != 7 {
		t.Errorf("exec: %v, %s", err, out)
	}
	// create runs as a child: its status and its words come through too.
	if out, err := r.oci("create", "--bundle", dir, "c"); exitCode(err) != 1 || !strings.Contains(out, "already exists") {
		t.Errorf("create of a container that is there: %v, %s", err, out)
	}
	r.runc = os.Getenv("FAULTGRAFT_RUNTIME") // what clears up is not what is tested
}

func exitCode(err error) int {
	exit, ok := err.(*exec.ExitError)
	if !ok {
		return -1
	}
	return exit.ExitCode()
}

// The wrapper that finds no other runtime says so.
func TestWrapperWithoutRuntime(t *testing.T) {
	r := newRuntime(t)
	r.wrapped()
	t.Setenv("FAULTGRAFT_RUNTIME", r.runc)
	for _, command := range []string{"state", "create"} {
		out, err := r.oci(command, "c")
		if exitCode(err) != 1 || !strings.Contains(out, "it is faultgraft's wrapper") {
			t.Errorf("%s: %v, %s", command, err, out)
		}
	}
}
