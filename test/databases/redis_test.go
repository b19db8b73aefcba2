package databases

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/lab"
)

// G27: layers come and go under a Redis that syncs each write, and that forks
// again and again to write snapshots and new logs. It reports no error, all
// that it acknowledged is there, also after a crash, and its own checks find
// nothing.
func TestRedis(t *testing.T) {
	s := newScene(t, "databases-redis")
	sockets := t.TempDir()
	if err := os.Chown(sockets, lab.DatabaseUID, lab.DatabaseUID); err != nil {
		t.Fatal(err)
	}
	s.run("-v", sockets+":/run/redis", lab.RedisImage, "redis-server", "--dir", "/data", "--port", "0", "--unixsocket", "/run/redis/socket",
		"--appendonly", "yes", "--appendfsync", "always", "--save", "")
	s.confined()
	load := &redisLoad{scene: s, socket: filepath.Join(sockets, "socket")}
	answers := func() error {
		c, err := dialRedis(load.socket)
		if err == nil {
			_, err = c.do([]string{"PING"}) // an error as long as it reads its files
			_ = c.Close()
		}
		return err
	}
	s.eventually("Redis answers", answers)
	started := len(s.log())
	quiet := s.snapshot(s.pid())

	s.cyclesUnder(load.run)
	if t.Failed() {
		return
	}
	t.Logf("it forked %d times", load.forks)
	if load.forks < min(2, *cycles/10) {
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
	load.check()
	s.calm(started)

	s.crash()
	s.eventually("Redis answers after a crash", answers)
	load.check()
	s.nerdctl("stop", "-t", "60", s.name)
	s.inData(lab.RedisImage, "redis-check-aof", "/data/appendonlydir/appendonly.aof.manifest")
	s.inData(lab.RedisImage, "redis-check-rdb", "/data/dump.rdb")
}

// calm checks that what Redis wrote from there on has no warning: "1:M 02 Jan 2026 03:04:05.678 # …".
func (s *scene) calm(from int) {
	s.Helper()
	if bad := regexp.MustCompile(`(?m)^\d+:\w .{24} # .*$`).FindAllString(s.log()[from:], 5); len(bad) > 0 {
		s.Errorf("its log has:\n%s", strings.Join(bad, "\n"))
	}
}
