package databases

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/workload"
)

// The server of the layer over its files is killed again and again while a
// PostgreSQL works. Its clients get no error, each row that was acknowledged is
// there once, and its own checks find nothing.
func TestPostgresWhileServersAreKilled(t *testing.T) {
	s := newScene(t, "databases-postgres-kills")
	pg := &workload.Postgres{Database: s.Database}
	s.must(pg.Start(s.ctx))
	started := s.logged()
	quiet := s.snapshot()
	// every read, write and sync of the log asks the server; tables and indexes pass it by
	s.killsUnder(func(ctx context.Context) { pg.Work(ctx, s.ctx) }, "/data/db/pg_wal/**")
	if t.Failed() {
		return
	}
	s.nothingLeft()
	s.settled(quiet)
	s.postgresIsWhole(pg, started)
}

// The same under a Redis that syncs each write and forks.
func TestRedisWhileServersAreKilled(t *testing.T) {
	s := newScene(t, "databases-redis-kills")
	r := &workload.Redis{Database: s.Database, Sockets: t.TempDir()}
	s.must(r.Start(s.ctx))
	started := s.logged()
	quiet := s.snapshot()
	s.killsUnder(r.Work, "/data/appendonlydir/**")
	if t.Failed() {
		return
	}
	s.nothingLeft()
	s.settled(quiet)
	s.redisIsWhole(r, started)
}

// betweenKills is the least time that a server has: of those that are killed
// faster, more than 30 in 10 s, the last takes the layer off (plugin/keeper/deaths.go).
const betweenKills = 400 * time.Millisecond

// killsUnder puts a layer over /data with rules for those files, and kills its server, and those that follow it, while load works. One rule
// never fires; by the other one writes take their time, so that a server has some in its hands when it is killed: they come again, to the
// one that follows.
func (s *scene) killsUnder(load func(ctx context.Context), files string) {
	s.Helper()
	kills := max(5, *cycles/4)
	g := s.inject(0, "io error=EIO op=data+sync p=0 ttl=24h path="+files, "io latency=5ms op=write ttl=24h path="+files)
	pid := s.pid()
	start := time.Now()
	s.under(load, kills, func(i int) {
		// in all moments of what the database does
		time.Sleep(betweenKills + time.Duration(rand.IntN(200))*time.Millisecond)
		server := s.server(pid)
		s.must(server.Kill())
		s.replaced(g.ID, i+1)
	})
	took := time.Since(start)
	if s.Failed() {
		return
	}
	off := s.answer(kills, "recover", g.ID)
	if len(off.Rules) != 2 || off.Rules[0].Matched == 0 || off.Rules[1].Matched == 0 {
		s.Errorf("no load was on the layer: %+v", off.Rules)
	}
	if off.Resent == 0 {
		s.Errorf("no request came again after %d deaths of servers", kills)
	}
	s.Logf("%d servers were killed in %s; %d operations asked the rule, %d requests came again; %d requests of clients were answered",
		kills, took.Round(time.Second), off.Rules[0].Matched, off.Resent, s.Acknowledged.Load())
}

// server waits until the target has one, and gives it: a new one has a twin for a moment, its holder.
func (s *scene) server(target int) lab.OwnProcess {
	s.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		all, err := s.Lab.Own(lab.RoleServer)
		s.must(err)
		if len(all) == 1 && all[0].Target == target {
			return all[0]
		}
		if time.Now().After(end) {
			s.Fatalf("servers of target %d: %+v", target, all)
		}
	}
}

// replaced waits until the layer has its server number n after the first.
func (s *scene) replaced(id string, n int) {
	s.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		all := s.grafts()
		if len(all) == 1 && all[0].ID == id && all[0].State == keeper.StateActive && all[0].Takeovers == n {
			return
		}
		if time.Now().After(end) {
			s.Fatalf("after death %d of a server: %+v", n, all)
		}
	}
}
