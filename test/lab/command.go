package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CommandError is a command that did not end well.
type CommandError struct {
	// Args are the command and its arguments, as the caller gave them.
	Args []string
	// Stderr is what it wrote to standard error.
	Stderr string
	// Err is an *exec.ExitError, or why it could not run.
	Err error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %v: %s", strings.Join(e.Args, " "), e.Err, strings.TrimSpace(e.Stderr))
}

// Unwrap returns Err.
func (e *CommandError) Unwrap() error { return e.Err }

// ExitCode is the exit status; -1 when the command did not exit by itself.
func (e *CommandError) ExitCode() int {
	var x *exec.ExitError
	if errors.As(e.Err, &x) {
		return x.ExitCode()
	}
	return -1
}

// Command prepares a command inside the lab's namespaces, in this process's
// working folder. Its process is the command itself: killing it leaves nothing
// in between.
func (l *Lab) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	var cmd *exec.Cmd
	if !l.Private() {
		cmd = exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+l.opts.External.Address)
	} else {
		pid, err := l.PID()
		if err != nil {
			return nil, err
		}
		wd, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		// env -C resolves the folder inside the lab's mount namespace
		in := []string{
			"-m", "-n", "-t", strconv.Itoa(pid), "--", "env", "-C", wd,
			"PATH=" + filepath.Join(l.dir, "bin") + ":" + os.Getenv("PATH"),
			"NERDCTL_TOML=" + filepath.Join(l.dir, "etc", "nerdctl.toml"),
			"CONTAINERD_ADDRESS=/run/containerd/containerd.sock",
			"CONTAINERD_NAMESPACE=" + Namespace,
			"FAULTGRAFT_CONFIG=" + l.Config(),
			"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
			name,
		}
		cmd = exec.CommandContext(ctx, "nsenter", append(in, args...)...)
	}
	// a daemon that keeps the command's pipes open must not hang the caller
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

// Config is the configuration of agents that are started by hand in the private
// lab; it opts in the namespaces of nerdctl, ctr and RunPod.
func (l *Lab) Config() string { return filepath.Join(l.dir, "etc", "faultgraft.yaml") }

// Run runs a command inside the lab and returns what it wrote to standard
// output, without white space at its ends. An error is a *CommandError.
func (l *Lab) Run(ctx context.Context, name string, args ...string) (string, error) {
	all := append([]string{name}, args...)
	cmd, err := l.Command(ctx, name, args...)
	if err != nil {
		return "", &CommandError{Args: all, Err: err}
	}
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), &CommandError{Args: all, Stderr: msg.String(), Err: err}
	}
	return strings.TrimSpace(out.String()), nil
}

// Nerdctl runs nerdctl.
func (l *Lab) Nerdctl(ctx context.Context, args ...string) (string, error) {
	name := "nerdctl"
	if !l.Private() {
		name = l.opts.External.Nerdctl
	}
	return l.Run(ctx, name, args...)
}

// Ctr runs ctr, in the private lab in the namespace that Nerdctl uses.
func (l *Lab) Ctr(ctx context.Context, args ...string) (string, error) {
	return l.Run(ctx, "ctr", args...)
}

// Faultgraft runs the faultgraft binary.
func (l *Lab) Faultgraft(ctx context.Context, args ...string) (string, error) {
	return l.Run(ctx, l.command(), args...)
}

// FaultgraftCommand prepares the faultgraft binary for a caller that wants to
// read its output as it comes, or to signal it.
func (l *Lab) FaultgraftCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return l.Command(ctx, l.command(), args...)
}

// command is the faultgraft that clients run: in the private lab the installed
// copy, so that a rebuild of the tree cannot change it under a test.
func (l *Lab) command() string {
	if l.Private() {
		return filepath.Join(l.dir, "bin", "faultgraft")
	}
	return l.binary
}

// useExternal checks the named containerd and gives it the lab's image.
func (l *Lab) useExternal(ctx context.Context) error {
	if _, err := l.Nerdctl(ctx, "version"); err != nil {
		return fmt.Errorf("the containerd named by CONTAINERD_ADDRESS does not answer: %w", err)
	}
	if err := l.script(ctx, "image"); err != nil {
		return err
	}
	tar := filepath.Join(l.dir, "img", "busybox.tar")
	for _, ns := range [][]string{nil, {"--namespace", "k8s.io"}} {
		if _, err := l.Nerdctl(ctx, append(ns, "load", "-q", "-i", tar)...); err != nil {
			return fmt.Errorf("load the image of the demo: %w", err)
		}
	}
	return nil
}
