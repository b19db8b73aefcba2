// Package workload runs databases in containers of the lab under clients that
// keep a model of what they were told is done, so that whatever happens to the
// database meanwhile, what is lost, doubled or changed is found.
package workload

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// Database is one container of the lab with its files in a volume on /data.
type Database struct {
	Lab *lab.Lab
	// Name is the container's, Data its volume on the machine.
	Name, Data string
	// Report takes what a client was told and should not have been; it is called from many goroutines.
	Report func(format string, args ...any)
	// Acknowledged counts what clients were told is done.
	Acknowledged atomic.Int64
}

// Run starts the container with the options of nerdctl run, the image and its arguments.
func (d *Database) Run(ctx context.Context, args ...string) error {
	if err := os.Chown(d.Data, lab.DatabaseUID, lab.DatabaseUID); err != nil {
		return err
	}
	_, err := d.Lab.Nerdctl(ctx, append([]string{"run", "-d", "--name", d.Name, "--net", "none", "-v", d.Data + ":/data"}, args...)...)
	return err
}

// PID is the container's first process, as the machine numbers it.
func (d *Database) PID(ctx context.Context) (int, error) {
	out, err := d.Lab.Nerdctl(ctx, "inspect", "-f", "{{.State.Pid}}", d.Name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// Family is the container's first process with its children.
func (d *Database) Family(ctx context.Context) ([]int, error) {
	first, err := d.PID(ctx)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", first))
	if err != nil {
		return nil, err
	}
	pids := []int{first}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Log is what the database wrote to both streams since its container was made.
func (d *Database) Log(ctx context.Context) (string, error) {
	return d.Lab.Run(ctx, "sh", "-c", `nerdctl logs "$0" 2>&1`, d.Name)
}

// Crash kills the whole container without a warning and starts it again.
func (d *Database) Crash(ctx context.Context) error {
	if _, err := d.Lab.Nerdctl(ctx, "kill", "-s", "KILL", d.Name); err != nil {
		return err
	}
	if err := Await(ctx, "the container ends", func() error {
		out, err := d.Lab.Nerdctl(ctx, "inspect", "-f", "{{.State.Running}}", d.Name)
		if err == nil && out != "false" {
			err = fmt.Errorf("running: %s", out)
		}
		return err
	}); err != nil {
		return err
	}
	_, err := d.Lab.Nerdctl(ctx, "start", d.Name)
	return err
}

// Inspect runs a program of the image over the volume, with the database stopped, and returns the last line that it said.
func (d *Database) Inspect(ctx context.Context, image, program string, args ...string) (string, error) {
	out, err := d.Lab.Nerdctl(ctx, append([]string{"run", "--rm", "--net", "none", "-v", d.Data + ":/data", "--entrypoint", program, image}, args...)...)
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return filepath.Base(program) + ": " + out[strings.LastIndexByte(out, '\n')+1:], nil
}

// patience is long: initdb of a PostgreSQL takes a second on an idle machine, and more than a minute on one that is busy with many other things.
const patience = 5 * time.Minute

// Await asks until it is so.
func Await(ctx context.Context, what string, so func() error) error {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err = so(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
