package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// cyclesOfStay is how often a layer comes and goes beside one that stays.
const cyclesOfStay = 8

// staysTheSame puts a layer over one folder of a container, which keeps its
// keeper and its server, has layers come and go over another one, and sees
// whether that leaves descriptors in any process of faultgraft.
func (s *soak) staysTheSame(ctx context.Context, phase int) (err error) {
	var can []*target
	for _, t := range s.targets {
		if t.apart[0] != "" {
			can = append(can, t)
		}
	}
	if len(can) == 0 {
		return nil
	}
	t := can[phase%len(can)]
	inject := func(path string) (string, error) {
		out, err := s.tell(ctx, "inject", t.name, "--path", path, "--deadline", "1m", "-o", "json", "io latency=1ms op=data+sync ttl=30m")
		if err != nil {
			return "", err
		}
		return s.took(out)
	}
	stays, err := inject(t.apart[0])
	if err != nil {
		return err
	}
	defer func() {
		_, rerr := s.tell(ctx, "recover", stays)
		err = errors.Join(err, rerr, s.untilNone(ctx, "recover "+stays), s.onlyTheAgent(ctx))
	}()
	var before map[int]held
	for i := range cyclesOfStay {
		g, err := inject(t.apart[1])
		if err != nil {
			return err
		}
		if _, err := s.tell(ctx, "recover", g); err != nil {
			return err
		}
		if i == 1 { // what is made once and kept is there
			if before, err = s.fewest(ctx); err != nil {
				return err
			}
		}
	}
	after, err := s.fewest(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for pid, was := range before {
		now, there := after[pid]
		if !there {
			errs = append(errs, fmt.Errorf("process %d (%s) ended though a layer was on", pid, was.role))
		}
		if now.descriptors > was.descriptors+cyclesOfStay/2 {
			errs = append(errs, fmt.Errorf("process %d (%s) has %d descriptors, %d grafts and ungrafts ago it had %d", pid, was.role, now.descriptors, cyclesOfStay-2, was.descriptors))
		}
	}
	return errors.Join(errs...)
}

// held is what a process of faultgraft has open.
type held struct {
	role        string
	descriptors int
}

// fewest is the least that each process of faultgraft has open within two seconds: without what comes and goes with requests.
func (s *soak) fewest(ctx context.Context) (map[int]held, error) {
	least := map[int]held{}
	for i := range 20 {
		all, err := s.lab.Own("")
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			u, ok := uses(p.Pid)
			if !ok || !slices.Contains([]string{lab.RoleAgent, lab.RoleKeeper, lab.RoleServer, lab.RoleHolder}, p.Role) {
				continue
			}
			was, seen := least[p.Pid]
			if i == 0 || seen && u.descriptors < was.descriptors {
				least[p.Pid] = held{p.Role, u.descriptors}
			}
		}
		pause(ctx, 100*time.Millisecond)
	}
	return least, nil
}
