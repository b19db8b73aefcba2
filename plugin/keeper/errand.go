package keeper

import (
	"fmt"
	"io"
	"os"
	"os/exec"
)

// errand is a process for what may wait for a file system for ever, in a sleep that no signal ends: it is left behind then. It holds
// nothing that anybody else needs, and ends when that file system answers, or with it.
type errand struct {
	cmd     *exec.Cmd
	answers *os.File
	said    speech
}

// startErrand starts one for a job, a flag of the hidden command; in tells it what to do.
func startErrand(executable, job string, in io.Reader) (*errand, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	e := &errand{answers: r, cmd: exec.Command(executable, "swap", job)}
	e.cmd.Stdin, e.cmd.ExtraFiles, e.cmd.Stderr = in, []*os.File{w}, &e.said
	err = e.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start a process: %w", err)
	}
	return e, nil
}

// leave ends it, if it has not ended, and does not wait for that.
func (e *errand) leave() {
	_ = e.cmd.Process.Kill()
	go func() { _ = e.cmd.Wait() }() // it is reaped when the file system answers
	_ = e.answers.Close()
}
