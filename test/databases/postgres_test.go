package databases

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/lab"
)

// G27: layers come and go under a PostgreSQL that is busy in all the ways it
// has. It reports no error; each row that it acknowledged is there, also after
// a crash; the sums of the bank are equal; its own checks find nothing; and what
// its processes hold is what they held before.
func TestPostgres(t *testing.T) {
	s := newScene(t, "databases-postgres")
	s.run(lab.PostgresImage,
		// few buffers, small segments and frequent checkpoints: much is read, written and opened
		"-c", "shared_buffers=8MB", "-c", "min_wal_size=32MB", "-c", "max_wal_size=64MB", "-c", "checkpoint_timeout=30s", "-c", "autovacuum_naptime=5s",
		// memory that its processes share is a file under the layer, mapped in all of them
		"-c", "dynamic_shared_memory_type=mmap",
		"-c", "listen_addresses=")
	s.confined()
	s.eventually("PostgreSQL answers", func() error {
		_, err := s.psql("SELECT 1")
		return err
	})
	if _, err := s.lab.Nerdctl(s.ctx, "exec", s.name, "pgbench", "-i", "-q", "-s", "2"); err != nil {
		t.Fatal(err)
	}
	s.query("CREATE TABLE ledger (client int, n int, payload text NOT NULL, PRIMARY KEY (client, n))")
	started := len(s.log())
	quiet := s.snapshot()

	load := &postgresLoad{scene: s}
	s.cyclesUnder(load.run)
	if t.Failed() {
		return
	}
	s.nothingLeft()
	s.settled(quiet)
	s.holdsTheSame()
	load.check()
	if bad := regexp.MustCompile(`(?m)^.*\b(WARNING|ERROR|FATAL|PANIC):.*$`).FindAllString(s.log()[started:], 5); len(bad) > 0 {
		t.Errorf("its log has:\n%s", strings.Join(bad, "\n"))
	}

	crashed := len(s.log())
	s.crash()
	s.eventually("PostgreSQL answers after a crash", func() error {
		_, err := s.psql("SELECT 1")
		return err
	})
	load.check()
	if bad := regexp.MustCompile(`(?m)^.*\b(ERROR|PANIC):.*$`).FindAllString(s.log()[crashed:], 5); len(bad) > 0 {
		t.Errorf("after the crash its log has:\n%s", strings.Join(bad, "\n"))
	}
	if out, err := s.lab.Nerdctl(s.ctx, "exec", s.name, "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check"); err != nil || out != "" {
		t.Errorf("pg_amcheck: %v\n%s", err, out)
	}
	s.nerdctl("stop", "-t", "60", s.name)
	s.inData(lab.PostgresImage, "pg_checksums", "--check", "-D", "/data/db")
}

// psql runs statements, each in a transaction of its own, and returns what came.
func (s *scene) psql(statements ...string) (string, error) {
	args := []string{"exec", s.name, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"}
	for _, st := range statements {
		args = append(args, "-c", st)
	}
	return s.lab.Nerdctl(s.ctx, args...)
}

func (s *scene) query(statements ...string) string {
	s.Helper()
	out, err := s.psql(statements...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// holdsTheSame compares, line by line of fdinfo, maps and mountinfo, what the
// processes of a PostgreSQL at rest hold before and after grafts (G25). It may
// open or close a file by itself meanwhile: what is left by grafts is there every time.
func (s *scene) holdsTheSame() {
	s.Helper()
	s.query("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()", "CHECKPOINT")
	var differs []string
	for range 5 {
		before := s.snapshot(s.family()...)
		for i := range 4 {
			s.cycle(i)
		}
		differs = before.Diff(s.snapshot(s.family()...))
		if len(differs) == 0 {
			return
		}
		// what ends a moment later by itself, such as a keeper
		s.nothingLeft()
		if differs = before.Diff(s.snapshot(s.family()...)); len(differs) == 0 {
			return
		}
	}
	s.Errorf("grafts leave it with other objects:\n%s", strings.Join(differs, "\n"))
}

// family is the container's first process with its children.
func (s *scene) family() []int {
	s.Helper()
	first := s.pid()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", first))
	if err != nil {
		s.Fatal(err)
	}
	pids := []int{first}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			s.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// check compares what is in the tables with what the clients were told.
func (l *postgresLoad) check() {
	l.Helper()
	if got := l.query(balanced); got != "t" {
		l.Errorf("the sums of accounts, tellers, branches and history are not equal")
	}
	want := strconv.FormatInt(l.transactions.Load(), 10)
	if got := l.query("SELECT count(*) FROM pgbench_history"); got != want {
		l.Errorf("the history has %s transactions, pgbench counted %s", got, want)
	}
	rows := strings.Split(l.query("SELECT client, n, md5(payload) FROM ledger ORDER BY client, n"), "\n")
	i, bad := 0, 0
	for client := range l.rows {
		for n := range l.rows[client] {
			want := fmt.Sprintf("%d|%d|%s", client, n, sum(entry(client, n)))
			if i >= len(rows) || rows[i] != want {
				if bad++; bad <= 5 {
					l.Errorf("row %d of the ledger: %q, want %q", i, rows[min(i, len(rows)-1)], want)
				}
			}
			i++
		}
	}
	if len(rows) != i {
		l.Errorf("the ledger has %d rows, %d were acknowledged", len(rows), i)
	}
}
