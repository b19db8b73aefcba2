package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Abandoned lists the keepers of the state directory that have a folder and do not listen: they were killed, and nobody
// has followed them yet, or ever will, if all that stood by their layers were killed with them.
func (c *Client) Abandoned() (keys []string, err error) {
	all, err := c.dir().keys()
	for _, k := range all {
		if !alive(c.dir().socket(k)) {
			keys = append(keys, k)
		}
	}
	return keys, err
}

// RecoveredOrphans is what RecoverOrphans has done.
type RecoveredOrphans struct {
	Off []Graft `json:"off"`
	// Left says for a person which layers were left alone, and why.
	Left []string `json:"left"`
}

// RunOrphans is the process of RecoverOrphansElsewhere: it writes a RecoveredOrphans.
func RunOrphans(ctx context.Context, stateDir string, out io.Writer) error {
	c := &Client{StateDir: stateDir}
	is, err := c.RecoverOrphans(ctx, false)
	done := RecoveredOrphans{Off: is.Off, Left: is.Passed}
	for _, l := range is.Left {
		done.Left = append(done.Left, l.String())
	}
	if err == nil && len(is.Left) == 0 { // else the folders tell that there is more to do
		_, err = Sweep(stateDir)
	}
	return errors.Join(err, json.NewEncoder(out).Encode(done))
}

// orphansWait is how long that process may take.
const orphansWait = 2 * time.Minute

// RecoverOrphansElsewhere does RecoverOrphans, with own false, in a process of its own, as that asks what may never answer and traces who has
// something open; where nothing is left then, also Sweep. A process that does not even end when it is killed is waited for until ctx ends.
func (c *Client) RecoverOrphansElsewhere(ctx context.Context) (RecoveredOrphans, error) {
	bounded, cancel := context.WithTimeout(ctx, orphansWait)
	cmd := exec.CommandContext(bounded, c.executable(), "orphans", "--state-dir", string(c.dir()))
	cmd.Args[0] = "faultgraft"
	cmd.Dir = "/"
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	type result struct {
		done RecoveredOrphans
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		defer cancel()
		var r result
		if err := cmd.Run(); err != nil {
			r.err = fmt.Errorf("take off layers that nobody serves any more: %w: %s", err, lastLine(said.Bytes()))
		}
		if err := json.Unmarshal(out.Bytes(), &r.done); err != nil && r.err == nil {
			r.err = fmt.Errorf("take off layers that nobody serves any more: %w", err)
		}
		ended <- r
	}()
	select {
	case r := <-ended:
		return r.done, r.err
	case <-ctx.Done():
		return RecoveredOrphans{}, ctx.Err()
	}
}
