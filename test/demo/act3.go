package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// podLabel marks the demo's pods.
const podLabel = "faultgraft-demo"

// actPod runs a pod whose annotation carries the rule. The very first thing
// that its containers do is a write; were the layer late by a millisecond, one of them
// would succeed.
func (d *demo) actPod(ctx context.Context) (err error) {
	const key, rule = "full.faultgraft.io/pod", "io error=ENOSPC op=write path=/data/** ttl=5m"
	spec := lab.PodSpec{Name: "demo-pod", Labels: map[string]string{podLabel: "true"}, Annotations: map[string]string{key: rule}}
	for i := range 3 {
		name := fmt.Sprintf("main%d", i+1)
		data := filepath.Join(d.dir, "act3", name)
		if err := os.MkdirAll(data, 0o755); err != nil {
			return err
		}
		spec.Containers = append(spec.Containers, lab.ContainerSpec{
			Name:    name,
			Command: []string{"sh", "-c", "echo first >/data/first && echo written; exec sleep 1000"},
			Mounts:  []lab.Mount{{Host: data, Container: "/data"}},
		})
	}
	say("  A pod of three containers that write at once, with the annotation %s: %s", key, rule)
	pod, err := d.lab.RunPod(ctx, spec)
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, pod.Remove(clean))
	}()
	for _, c := range pod.Containers {
		var log string
		if err := await(ctx, 10*time.Second, "container "+c.Name, func(context.Context) (bool, error) {
			log, err = c.Log()
			return strings.TrimSpace(log) != "", err
		}); err != nil {
			return err
		}
		d.check(strings.Contains(log, "No space left on device") && !strings.Contains(log, "written"),
			"%s, first command: %s", c.Name, strings.TrimSpace(log))
		g, err := d.awaitGraft(ctx, c.ID)
		if err != nil {
			return err
		}
		if err := d.checkCount(ctx, g.ID, 1, "write fail"); err != nil {
			return err
		}
		// only the annotation's file is there, and empty: nothing else came into the volume
		b, err := os.ReadFile(filepath.Join(d.dir, "act3", c.Name, "first"))
		d.check(err == nil && len(b) == 0, "its volume holds the one empty file that open made%s", because(err))
	}
	say("  The pod is removed with its layers on: they go with it.")
	return nil
}
