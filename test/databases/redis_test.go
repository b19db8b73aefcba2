package databases

import (
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/workload"
)

// G27: layers come and go under a Redis that syncs each write, and that forks
// again and again to write snapshots and new logs. It reports no error, all
// that it acknowledged is there, also after a crash, and its own checks find
// nothing.
func TestRedis(t *testing.T) {
	s := newScene(t, "databases-redis")
	r := &workload.Redis{Database: s.Database, Sockets: t.TempDir()}
	s.must(r.Start(s.ctx))
	s.confined()
	started := s.logged()
	quiet := s.snapshot(s.pid())

	s.cyclesUnder(r.Work)
	if t.Failed() {
		return
	}
	t.Logf("it forked %d times", r.Forks)
	if r.Forks < min(2, *cycles/10) {
		t.Error("it hardly forked")
	}
	s.nothingLeft()
	// The log is another file since it was rewritten; all else that Redis has open, it had before.
	now := s.snapshot(s.pid())
	for _, d := range quiet.Diff(now) {
		if !strings.Contains(d, "/data/appendonlydir/") {
			t.Errorf("not as before: %s", d)
		}
	}
	before := s.snapshot(s.pid())
	for i := range 4 {
		s.cycle(i)
	}
	s.settled(before)
	s.redisIsWhole(r, started)
}

// redisIsWhole is postgresIsWhole for a Redis.
func (s *scene) redisIsWhole(r *workload.Redis, started int) {
	s.Helper()
	s.must(r.Check())
	s.calm(r.Complaints(s.ctx, started))

	s.must(r.Crash(s.ctx))
	s.must(r.Answers(s.ctx))
	s.must(r.Check())
	said, err := r.CheckFiles(s.ctx)
	s.must(err)
	s.T.Log(said)
}
