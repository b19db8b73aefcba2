package databases

import (
	"context"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/workload"
)

// G27: layers come and go under a PostgreSQL that is busy in all the ways it
// has. It reports no error; each row that it acknowledged is there, also after
// a crash; the sums of the bank are equal; its own checks find nothing; and what
// its processes hold is what they held before.
func TestPostgres(t *testing.T) {
	s := newScene(t, "databases-postgres")
	pg := &workload.Postgres{Database: s.Database}
	s.must(pg.Start(s.ctx))
	s.confined()
	started := s.logged()
	quiet := s.snapshot()

	s.cyclesUnder(func(ctx context.Context) { pg.Work(ctx, s.ctx) })
	if t.Failed() {
		return
	}
	s.nothingLeft()
	s.settled(quiet)
	s.holdsTheSame(pg)
	s.postgresIsWhole(pg, started)
}

// postgresIsWhole compares a PostgreSQL with its model, now and after a crash, and has it check its own files. Its log is read from that byte on.
func (s *scene) postgresIsWhole(pg *workload.Postgres, started int) {
	s.Helper()
	s.must(pg.Check(s.ctx))
	s.calm(pg.Complaints(s.ctx, started, "WARNING", "ERROR", "FATAL", "PANIC"))

	crashed := s.logged()
	s.must(pg.Crash(s.ctx))
	s.must(pg.Answers(s.ctx))
	s.must(pg.Check(s.ctx))
	s.calm(pg.Complaints(s.ctx, crashed, "ERROR", "PANIC"))
	said, err := pg.CheckFiles(s.ctx)
	s.must(err)
	s.T.Log(said)
}

// holdsTheSame compares, line by line of fdinfo, maps and mountinfo, what the
// processes of a PostgreSQL at rest hold before and after grafts (G25). It may
// open or close a file by itself meanwhile: what is left by grafts is there every time.
func (s *scene) holdsTheSame(pg *workload.Postgres) {
	s.Helper()
	_, err := pg.Query(s.ctx, "ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()", "CHECKPOINT")
	s.must(err)
	family := func() []int {
		pids, err := pg.Family(s.ctx)
		s.must(err)
		return pids
	}
	var differs []string
	for range 5 {
		before := s.snapshot(family()...)
		for i := range 4 {
			s.cycle(i)
		}
		differs = before.Diff(s.snapshot(family()...))
		if len(differs) == 0 {
			return
		}
		// what ends a moment later by itself, such as a keeper
		s.nothingLeft()
		if differs = before.Diff(s.snapshot(family()...)); len(differs) == 0 {
			return
		}
	}
	s.Errorf("grafts leave it with other objects:\n%s", strings.Join(differs, "\n"))
}
