package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// check is a checkpoint: nobody works, everything is taken off, and all must be as if nothing had been.
func (s *soak) check(ctx context.Context, phase int, last bool) {
	s.mu.Lock()
	s.now = fmt.Sprintf("checkpoint %d", phase)
	s.mu.Unlock()
	start := time.Now()
	for _, c := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"delete the policies", s.deletePolicies},
		{"recover --all", func(ctx context.Context) error { _, err := s.tell(ctx, "recover", "--all"); return err }},
		{"grafts are over", func(ctx context.Context) error { return s.untilNone(ctx, "recover --all") }},
		{"faultgraft's processes", s.onlyTheAgent},
		{"the state directory", s.stateIsClean},
		{"mounts", s.mountsAreAsBefore},
		{"what processes hold", s.nothingHeld},
		{"data", s.dataIsWhole},
		{"what grafts leave in processes that stay", func(ctx context.Context) error { return s.staysTheSame(ctx, phase) }},
		{"a crash with a layer on", func(ctx context.Context) error { return s.crashGrafted(ctx, phase) }},
		{"files", func(ctx context.Context) error { return s.checkFiles(ctx, last) }},
	} {
		limited, cancel := context.WithTimeout(ctx, 15*time.Minute)
		err := c.do(limited)
		cancel()
		if err != nil {
			s.find("checkpoint %d: %s: %v", phase, c.what, err)
		}
	}
	if last {
		for _, g := range s.sampler.growth() {
			s.find("memory and descriptors grow: %s", g)
		}
		for _, k := range s.notDone() {
			s.find("a kind of step that did nothing: %s", k)
		}
		// The layers of a short run may have come off before one was due.
		if s.o.length >= time.Minute && slices.ContainsFunc(s.targets, func(t *target) bool { return t.faulty != "" }) && s.sum.of(faultsSeen) == 0 {
			s.find("no fault came to a program that expects some")
		}
	}
	s.sampler.next()
	s.sum.count("checkpoints")
	s.say("soak: %s: checkpoint %d took %s; %s", time.Since(s.sum.begin).Round(time.Second), phase, time.Since(start).Round(time.Second), s.sum.short(s))
	if last || !s.clean() {
		return
	}
	for _, t := range s.targets {
		if err := t.reset(ctx); err != nil {
			s.find("%s: begin with new data: %v", t.name, err)
		}
	}
}

func (s *soak) deletePolicies(ctx context.Context) error {
	var errs []error
	for i := range 3 {
		if _, err := s.tell(ctx, "delete", fmt.Sprintf("soak-%d", i)); err != nil && !strings.Contains(reason(err), "no such policy") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// onlyTheAgent waits until the agent is the only process of faultgraft.
func (s *soak) onlyTheAgent(ctx context.Context) error {
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); pause(ctx, 100*time.Millisecond) {
		all, err := s.lab.Own("")
		if err != nil {
			return err
		}
		left = left[:0]
		for _, p := range all {
			if p.Pid != s.agent.pid() {
				left = append(left, fmt.Sprintf("%d (%s)", p.Pid, p.Role))
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("processes are left: %s", strings.Join(left, ", "))
}

// inState are the names that the state directory may have while an agent runs and no graft is on; keepers and ended are empty.
var inState = []string{"audit.json", "audit.jsonl", "audit.jsonl.1", "counters.json", "daemon.json", "daemon.log", "daemon.sock", "ended", "events.jsonl", "events.jsonl.1", "keepers", "policies.json", "turns"}

func (s *soak) stateIsClean(ctx context.Context) error {
	state, err := s.lab.Path("/run/faultgraft")
	if err != nil {
		return err
	}
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); pause(ctx, 100*time.Millisecond) {
		left = left[:0]
		err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || path == state {
				return nil // gone meanwhile
			}
			rel := strings.TrimPrefix(path, state+"/")
			if !slices.Contains(inState, rel) && !strings.HasPrefix(d.Name(), ".") {
				left = append(left, rel)
			}
			return err
		})
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("left in the state directory: %s", strings.Join(left, ", "))
}

func (s *soak) mountsAreAsBefore(ctx context.Context) error {
	var errs []error
	for _, t := range s.targets {
		pid, err := t.pid(ctx)
		if err != nil {
			return err
		}
		now, err := mountinfo(pid)
		if err != nil {
			return err
		}
		for _, line := range now {
			if !slices.Contains(t.mounts, line) {
				errs = append(errs, fmt.Errorf("%s: a mount that was not there: %s", t.name, line))
			}
		}
		if len(now) < len(t.mounts) {
			errs = append(errs, fmt.Errorf("%s: %d mounts, %d before", t.name, len(now), len(t.mounts)))
		}
	}
	return errors.Join(errs...)
}

// nothingHeld sees that what the containers' processes have open below /data is on the volume, and not on a layer that is off.
func (s *soak) nothingHeld(ctx context.Context) error {
	var errs []error
	for _, t := range s.targets {
		pid, err := t.pid(ctx)
		if err != nil {
			return err
		}
		var volume unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root/data", pid), &volume); err != nil {
			return err
		}
		family, err := descendants(pid)
		if err != nil {
			return err
		}
		for _, p := range family {
			for _, pattern := range []string{"fd/*", "map_files/*", "cwd", "root", "exe"} {
				links, err := filepath.Glob(fmt.Sprintf("/proc/%d/%s", p, pattern))
				if err != nil {
					return err
				}
				for _, l := range links {
					name, err := os.Readlink(l)
					if err != nil || !strings.HasPrefix(name, "/data") {
						continue
					}
					var st unix.Stat_t
					if err := unix.Stat(l, &st); err != nil && !errors.Is(err, unix.ENOENT) || err == nil && st.Dev != volume.Dev {
						errs = append(errs, fmt.Errorf("%s: %s is %s on device %d, the volume is %d: %v", t.name, l, name, st.Dev, volume.Dev, err))
					}
				}
			}
		}
	}
	return errors.Join(errs...)
}

// descendants is a process with all below it.
func descendants(pid int) ([]int, error) {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", out[i]))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue // a thread that has ended
			}
			for _, c := range strings.Fields(string(b)) {
				var child int
				if _, err := fmt.Sscan(c, &child); err != nil {
					return nil, err
				}
				out = append(out, child)
			}
		}
	}
	return out, nil
}

func (s *soak) dataIsWhole(ctx context.Context) error {
	var errs []error
	for _, t := range s.targets {
		if err := t.check(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	return errors.Join(errs...)
}

// crashGrafted kills one of the databases, in turn, while a layer is over its volume, starts it again, and compares its data once more.
func (s *soak) crashGrafted(ctx context.Context, phase int) error {
	var can []*target
	for _, t := range s.targets {
		if t.crash != nil {
			can = append(can, t)
		}
	}
	if len(can) == 0 {
		return nil
	}
	t := can[phase%len(can)]
	if _, err := s.tell(ctx, "inject", t.name, "--path", "/data", "--deadline", "1m", "io latency=1ms op=data+sync ttl=10m"); err != nil {
		return err
	}
	if err := t.crash(ctx); err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	s.sum.count("kill container with a layer on")
	if err := t.begun(ctx); err != nil {
		return err
	}
	if err := s.untilNone(ctx, "the death of their container"); err != nil {
		return err
	}
	return s.onlyTheAgent(ctx)
}

// checkFiles has the databases' own programs look at their files, at the last checkpoint.
func (s *soak) checkFiles(ctx context.Context, last bool) error {
	if !last {
		return nil
	}
	var errs []error
	for _, t := range s.targets {
		if t.files == nil {
			continue
		}
		said, err := t.files(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.name, err))
			continue
		}
		s.say("soak: %s: %s", t.name, said)
	}
	return errors.Join(errs...)
}
