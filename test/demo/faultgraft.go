package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// grafted is a line of `faultgraft ps -o json`, as far as the demo looks at it.
type grafted struct {
	ID     string `json:"id"`
	Target struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	} `json:"target"`
	Path   string `json:"path"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Rules  []struct {
		Name  string `json:"name"`
		Fired int    `json:"fired"`
	} `json:"rules"`
}

// event is a line of `faultgraft events -o json`, as far as the demo looks at it.
type event struct {
	Type   string `json:"type"`
	Graft  string `json:"graft"`
	Target string `json:"target"`
	Name   string `json:"name"`
	Rule   string `json:"rule"`
	Op     string `json:"op"`
	Path   string `json:"path"`
	Errno  string `json:"errno"`
}

// container is what a reader calls the target.
func (e event) container() string {
	if e.Name != "" {
		return e.Name
	}
	return e.Target[:min(12, len(e.Target))]
}

// inject grafts, shows what faultgraft says about it, and returns the graft's id.
func (d *demo) inject(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"inject"}, args...)
	cmd, err := d.lab.FaultgraftCommand(ctx, args...)
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("faultgraft inject: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	for line := range strings.Lines(said.String()) {
		say("         %s", strings.TrimSuffix(line, "\n"))
	}
	return strings.TrimSpace(out.String()), nil
}

// grafts lists what is grafted now.
func (d *demo) grafts(ctx context.Context) ([]grafted, error) {
	out, err := d.lab.Faultgraft(ctx, "ps", "-o", "json")
	if err != nil {
		return nil, err
	}
	var g []grafted
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		return nil, fmt.Errorf("faultgraft ps -o json: %w in %q", err, out)
	}
	return g, nil
}

// awaitGraft waits until the container with that id has an active graft.
func (d *demo) awaitGraft(ctx context.Context, container string) (g grafted, err error) {
	err = await(ctx, 10*time.Second, "a graft on the container", func(ctx context.Context) (bool, error) {
		all, err := d.grafts(ctx)
		if err != nil {
			return false, err
		}
		for _, g = range all {
			if g.Target.ID != container {
				continue
			}
			if g.State == "active" {
				return true, nil
			}
			err = fmt.Errorf("it is %s %s", g.State, g.Reason)
		}
		return false, err
	})
	return g, err
}

// faultsOf reads the log of faults that a graft injected, and notes them for the table at the end.
func (d *demo) faultsOf(ctx context.Context, graft string) ([]event, error) {
	out, err := d.lab.Faultgraft(ctx, "events", "-o", "json")
	if err != nil {
		return nil, err
	}
	var faults []event
	dec := json.NewDecoder(bytes.NewReader([]byte(out)))
	for dec.More() {
		var e event
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("faultgraft events -o json: %w", err)
		}
		if e.Type == "fault" && e.Graft == graft {
			faults = append(faults, e)
		}
	}
	d.faults = append(d.faults, faults...)
	return faults, nil
}

// checkCount compares the log with what the program in the container saw.
func (d *demo) checkCount(ctx context.Context, graft string, seen int, what string) error {
	faults, err := d.faultsOf(ctx, graft)
	if err != nil {
		return err
	}
	d.check(len(faults) == seen && seen > 0, "the log has %d faults, the program saw %d %s", len(faults), seen, what)
	return nil
}
