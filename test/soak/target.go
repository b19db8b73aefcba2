package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/soak/recorded"
	"github.com/faultgraft/faultgraft/test/workload"
)

// target is one container of the soak.
type target struct {
	name string
	// paths are where layers go, the one over all of the volume first.
	paths []string
	// apart are two of them of which none is in the other; "" for a target that has no such two.
	apart [2]string
	// faults are rules whose errors its program expects, below faulty.
	faults []string
	faulty string
	pid    func(context.Context) (int, error)
	// work has clients work until the first context ends; the second one is for how they end.
	work func(ctx, life context.Context)
	// acknowledged counts what was done.
	acknowledged func() int64
	// check compares what is there with the model, while nobody works.
	check func(context.Context) error
	// files has the database's own programs check its files, and stops it for that; nil for none.
	files func(context.Context) (string, error)
	// crash kills the container and starts it again; nil where it may not be.
	crash func(context.Context) error
	// reset begins with new data.
	reset func(context.Context) error
	// first is its first process, mounts what that had before the first graft.
	first  int
	mounts []string
}

// Rules whose only effect is that calls take longer; PATH is that of the layer.
var slow = []string{
	"io error=EIO op=all path=PATH/nothing/** ttl=TTL",
	"io error=EIO op=data+sync p=0 ttl=TTL",
	"io latency=5ms op=fsync+fdatasync ttl=TTL",
	"io latency=uniform(1ms,20ms) op=read+write p=10% ttl=TTL",
	"io latency=exp(3ms) cap=50ms op=open+create+rename+unlink ttl=TTL",
	"io throttle=4MiB/s op=write ttl=TTL",
	"io latency=10ms op=data+sync active=1s idle=1s ttl=TTL",
}

// setUp starts the containers and the agent.
func (s *soak) setUp(ctx context.Context) error {
	s.agent = &agent{s: s}
	if err := s.agent.takeOver(ctx); err != nil {
		return err
	}
	for _, add := range []struct {
		name string
		add  func(ctx context.Context, data string) (*target, error)
	}{{"postgres", s.postgres}, {"redis", s.redis}, {"recorder", s.recorder}} {
		if len(s.o.only) > 0 && !slices.Contains(s.o.only, add.name) {
			continue
		}
		data := filepath.Join(s.dir, add.name)
		if err := os.Mkdir(data, 0o755); err != nil {
			return err
		}
		t, err := add.add(ctx, data)
		if err != nil {
			return fmt.Errorf("start %s: %w", add.name, err)
		}
		t.name = containerName(add.name)
		s.targets = append(s.targets, t)
	}
	for _, t := range s.targets {
		if err := t.begun(ctx); err != nil {
			return err
		}
	}
	s.sampler = sample(s)
	return s.agent.start(ctx)
}

// begun notes the mounts of a container that was started.
func (t *target) begun(ctx context.Context) (err error) {
	if t.first, err = t.pid(ctx); err != nil {
		return err
	}
	t.mounts, err = mountinfo(t.first)
	return err
}

func containerName(what string) string { return "soak-" + what }

// label is how policies find the containers.
var label = []string{"--label", "soak=yes"}

func (s *soak) database(what, data string) *workload.Database {
	return &workload.Database{Lab: s.lab, Name: containerName(what), Data: data, Report: func(format string, args ...any) {
		s.find("a client of %s: %s", what, fmt.Sprintf(format, args...))
	}}
}

func (s *soak) postgres(ctx context.Context, data string) (*target, error) {
	p := &workload.Postgres{Database: s.database("postgres", data)}
	from := 0
	logged := func(ctx context.Context, severities ...string) error {
		bad, err := p.Complaints(ctx, from, severities...)
		if err == nil && len(bad) > 0 {
			err = fmt.Errorf("its log has: %q", bad)
		}
		return err
	}
	rewind := func(ctx context.Context) error {
		log, err := p.Log(ctx)
		from = len(log)
		return err
	}
	return &target{
		paths: []string{"/data", "/data/db", "/data/db/pg_wal", "/data/db/base", "/data/db/global", "/data/db/pg_dynshmem"},
		apart: [2]string{"/data/db/global", "/data/db/base"},
		pid:   p.PID, acknowledged: p.Acknowledged.Load,
		work: p.Work,
		check: func(ctx context.Context) error {
			return errors.Join(p.Check(ctx), logged(ctx, "WARNING", "ERROR", "FATAL", "PANIC"))
		},
		files: p.CheckFiles,
		crash: func(ctx context.Context) error {
			if err := errors.Join(rewind(ctx), p.Crash(ctx)); err != nil {
				return err
			}
			// it says FATAL to whom connects before it is ready
			return errors.Join(p.Answers(ctx), p.Check(ctx), logged(ctx, "ERROR", "PANIC"))
		},
		reset: func(ctx context.Context) error { return errors.Join(p.Reset(ctx), rewind(ctx)) },
	}, errors.Join(p.Start(ctx, label...), rewind(ctx))
}

func (s *soak) redis(ctx context.Context, data string) (*target, error) {
	sockets := filepath.Join(s.dir, "redis-socket")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		return nil, err
	}
	r := &workload.Redis{Database: s.database("redis", data), Sockets: sockets}
	from := 0
	logged := func(ctx context.Context) error {
		bad, err := r.Complaints(ctx, from)
		if err == nil && len(bad) > 0 {
			err = fmt.Errorf("its log has: %q", bad)
		}
		return err
	}
	rewind := func(ctx context.Context) error {
		log, err := r.Log(ctx)
		from = len(log)
		return err
	}
	return &target{
		// not over /data/appendonlydir: it renames files into it from outside, which no file system lets one do
		paths: []string{"/data"},
		pid:   r.PID, acknowledged: r.Acknowledged.Load,
		work:  func(ctx, _ context.Context) { r.Work(ctx) },
		check: func(ctx context.Context) error { return errors.Join(r.Check(), logged(ctx)) },
		files: r.CheckFiles,
		crash: func(ctx context.Context) error {
			return errors.Join(r.Crash(ctx), r.Answers(ctx), r.Check(), rewind(ctx))
		},
		reset: func(ctx context.Context) error { return errors.Join(r.Reset(), rewind(ctx)) },
	}, errors.Join(r.Start(ctx, label...), rewind(ctx))
}

// recorder runs test/soak/recorder, which has clients in itself and works all the time.
func (s *soak) recorder(ctx context.Context, data string) (*target, error) {
	bin, status := filepath.Join(s.dir, "recorder-bin"), filepath.Join(s.dir, "recorder-status")
	for _, d := range []string{bin, status} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(bin, "recorder"), "github.com/faultgraft/faultgraft/test/soak/recorder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the recorder: %w\n%s", err, msg)
	}
	r := &recorder{s: s, path: filepath.Join(status, "status.json")}
	_, err := s.lab.Nerdctl(ctx, append(append([]string{"run", "-d", "--name", containerName("recorder"), "--net", "none"}, label...),
		// A signal ends a wait of the layer with EINTR (docs/faults.md), and Go's scheduler signals its own threads.
		"-e", "GODEBUG=asyncpreemptoff=1",
		"-v", data+":/data", "-v", bin+":/opt:ro", "-v", status+":/status", lab.Image,
		"/opt/recorder", "/data", "/status/status.json", "EIO", "ENOSPC", "EROFS", "EDQUOT")...)
	if err != nil {
		return nil, err
	}
	d := &workload.Database{Lab: s.lab, Name: containerName("recorder")}
	return &target{
		paths:  []string{"/data", "/data/clean", "/data/faulty"},
		apart:  [2]string{"/data/clean", "/data/faulty"},
		faulty: "/data/faulty",
		faults: []string{
			"io error=EIO op=write path=/data/faulty/** p=30% ttl=TTL",
			"io error=ENOSPC op=create+write path=/data/faulty/** p=20% ttl=TTL",
			"io error=EIO op=fsync path=/data/faulty/** every=3 ttl=TTL",
			"io error=EROFS op=open+create path=/data/faulty/** times=20 ttl=TTL",
			"io error=EIO op=read path=/data/faulty/** nth=5 ttl=TTL",
			"io quota=4KiB op=write path=/data/faulty/** ttl=TTL",
			"io hang op=fsync+write path=/data/faulty/** times=1 p=5% ttl=3s",
		},
		pid: d.PID, acknowledged: r.operations,
		work:  r.watch,
		check: r.faultsEnd,
		reset: func(context.Context) error { return nil },
	}, workload.Await(ctx, "the recorder works", func() error { _, err := recorded.ReadNow(r.path, patience); return err })
}

// recorder reads what the program of that name says.
type recorder struct {
	s    *soak
	path string
	mu   sync.Mutex
	told int // how much of what is wrong was told
}

func (r *recorder) operations() int64 {
	now, err := recorded.Read(r.path)
	if err != nil {
		r.s.find("%v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range now.Wrong[min(r.told, len(now.Wrong)):] {
		r.s.find("the recorder: %s", w)
	}
	r.told = len(now.Wrong)
	return now.Operations
}

// watch looks at what is wrong until ctx ends.
func (r *recorder) watch(ctx, _ context.Context) {
	for ctx.Err() == nil {
		r.operations()
		pause(ctx, time.Second)
	}
}

// faultsEnd sees that no fault comes when no layer is on.
func (r *recorder) faultsEnd(ctx context.Context) error {
	now := recorded.Now()
	was, err := recorded.ReadNow(r.path, patience)
	if err != nil {
		return err
	}
	var is recorded.Status
	err = workload.Await(ctx, "no fault without a layer", func() (err error) {
		is, err = recorded.Read(r.path)
		if err == nil && is.Faulty < was.Faulty+100 {
			err = fmt.Errorf("only %d rounds so far", is.Faulty-was.Faulty)
		}
		return err
	})
	if is.FaultyCall >= now {
		err = errors.Join(err, fmt.Errorf("faults without a layer: %v, then %v", was.Faults, is.Faults))
	}
	r.operations()
	r.s.sum.set(faultsSeen, int64(is.Total()))
	return err
}

// faultsSeen is what the summary calls them: without any, nothing is shown of their end.
const faultsSeen = "faults that the recorder saw"

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// ttl draws how long a rule lives.
func ttl(r *rand.Rand) string {
	return []string{"2s", "5s", "20s", "1m", "5m"}[r.IntN(5)]
}

// drawRules draws rules for a layer of the target over that path, one to three. Where its program expects errors, one makes some.
func (t *target) drawRules(r *rand.Rand, path string) []string {
	can, first := slow, slow
	if t.faulty != "" && (path == t.faulty || strings.HasPrefix(t.faulty, path+"/")) {
		can, first = append(slices.Clone(t.faults), slow...), t.faults
	}
	var out []string
	for n := range 1 + r.IntN(3) {
		from := can
		if n == 0 {
			from = first
		}
		text := strings.NewReplacer("PATH", path, "TTL", ttl(r)).Replace(from[r.IntN(len(from))])
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}
