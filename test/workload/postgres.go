package workload

import (
	"bufio"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// Postgres is a PostgreSQL, what clients do to it, and what they were told.
type Postgres struct {
	*Database
	// rows of each client of the ledger that were acknowledged, the first is row 0.
	rows [2]int
	// transactions that pgbench counted.
	transactions atomic.Int64
}

// balanced is what holds after each transaction of pgbench's tpcb-like script.
const balanced = `SELECT a = b AND b = t AND t = h FROM
	(SELECT coalesce(sum(abalance), 0) AS a FROM pgbench_accounts) a, (SELECT coalesce(sum(bbalance), 0) AS b FROM pgbench_branches) b,
	(SELECT coalesce(sum(tbalance), 0) AS t FROM pgbench_tellers) t, (SELECT coalesce(sum(delta), 0) AS h FROM pgbench_history) h`

// Start starts the server, with more options for nerdctl run, and makes its tables.
func (p *Postgres) Start(ctx context.Context, options ...string) error {
	err := p.Run(ctx, append(options, lab.PostgresImage,
		// few buffers, small segments and frequent checkpoints: much is read, written and opened
		"-c", "shared_buffers=8MB", "-c", "min_wal_size=32MB", "-c", "max_wal_size=64MB", "-c", "checkpoint_timeout=30s", "-c", "autovacuum_naptime=5s",
		// memory that its processes share is a file under the layer, mapped in all of them
		"-c", "dynamic_shared_memory_type=mmap",
		"-c", "listen_addresses=")...)
	if err != nil {
		return err
	}
	if err := p.Answers(ctx); err != nil {
		return err
	}
	if _, err := p.Query(ctx, "CREATE TABLE ledger (client int, n int, payload text NOT NULL, PRIMARY KEY (client, n))"); err != nil {
		return err
	}
	return p.Reset(ctx)
}

// Reset begins with empty tables, and a model of them.
func (p *Postgres) Reset(ctx context.Context) error {
	if _, err := p.Lab.Nerdctl(ctx, "exec", p.Name, "pgbench", "-i", "-q", "-s", "2"); err != nil {
		return err
	}
	if _, err := p.Query(ctx, "TRUNCATE ledger"); err != nil {
		return err
	}
	clear(p.rows[:])
	p.transactions.Store(0)
	return nil
}

// Answers waits until the server does.
func (p *Postgres) Answers(ctx context.Context) error {
	return Await(ctx, "PostgreSQL answers", func() error {
		_, err := p.Query(ctx, "SELECT 1")
		return err
	})
}

// Query runs statements, each in a transaction of its own, and returns what came.
func (p *Postgres) Query(ctx context.Context, statements ...string) (string, error) {
	args := []string{"exec", p.Name, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"}
	for _, st := range statements {
		args = append(args, "-c", st)
	}
	return p.Lab.Nerdctl(ctx, args...)
}

// Work runs all clients until ctx ends. Each then ends what it has begun, for which it has until life ends.
func (p *Postgres) Work(ctx, life context.Context) {
	var wg sync.WaitGroup
	for client := range p.rows {
		wg.Go(func() {
			if err := p.ledger(ctx, life, client); err != nil {
				p.Report("client %d of the ledger, row %d: %v", client, p.rows[client], err)
			}
		})
	}
	// Not as much as they can: the processors are faultgraft's, too.
	wg.Go(func() { p.bench(ctx, life, "-c", "4", "-j", "2", "-R", "200") })
	wg.Go(func() { p.bench(ctx, life, "-c", "2", "-R", "20", "-C") }) // a new backend for each transaction
	wg.Go(func() { p.upkeep(ctx, life) })
	wg.Wait()
}

// ledger inserts row after row, each when the one before is acknowledged, in one session that works in the volume.
func (p *Postgres) ledger(ctx, life context.Context, client int) (err error) {
	cmd, err := p.Lab.Command(life, "nerdctl", "exec", "-i", "-w", "/data", p.Name, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1")
	if err != nil {
		return err
	}
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, in.Close(), cmd.Wait()) // psql ends with its input
		if said.Len() > 0 {
			err = errors.Join(err, errors.New(said.String()))
		}
	}()
	answers := bufio.NewReader(out)
	// One row at least: an end of input that comes before the session has begun is lost (containerd's CloseIO), and psql waits for ever.
	for more := true; more; more = ctx.Err() == nil {
		n := p.rows[client]
		if _, err := fmt.Fprintf(in, "INSERT INTO ledger VALUES (%d, %d, '%s') RETURNING n;\n", client, n, entry(client, n)); err != nil {
			return err
		}
		line, err := answers.ReadString('\n')
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		if line != strconv.Itoa(n)+"\n" {
			return fmt.Errorf("answer %q", line)
		}
		p.rows[client]++
		p.Acknowledged.Add(1)
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// entry is the payload of a row: hexadecimal digits that do not compress well, at most 8 KiB of them, so that some are stored apart.
func entry(client, n int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%d/%d", client, n))
	size := 1 << (h[0] % 14)
	var b strings.Builder
	for b.Len() < size {
		b.WriteString(hex.EncodeToString(h[:]))
		h = sha256.Sum256(h[:])
	}
	return b.String()[:size]
}

// sum is PostgreSQL's md5().
func sum(s string) string {
	h := md5.Sum([]byte(s))
	return hex.EncodeToString(h[:])
}

var processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)

// bench runs pgbench again and again, some seconds each, with all that a run begins and ends with.
func (p *Postgres) bench(ctx, life context.Context, args ...string) {
	for ctx.Err() == nil {
		out, err := p.Lab.Nerdctl(life, append([]string{"exec", p.Name, "pgbench", "-n", "-T", "3"}, args...)...)
		m := processed.FindStringSubmatch(out)
		if err != nil || m == nil || !strings.Contains(out, "number of failed transactions: 0 ") {
			p.Report("pgbench: %v\n%s", err, out)
			return
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			p.Report("pgbench: %v", err)
			return
		}
		p.transactions.Add(n)
		p.Acknowledged.Add(n)
	}
}

// upkeep does what administrators and reports do: new files, temporary files, files that go, processes that share memory.
func (p *Postgres) upkeep(ctx, life context.Context) {
	for ctx.Err() == nil {
		out, err := p.Query(life, "CHECKPOINT", "SELECT pg_switch_wal() IS NOT NULL", "VACUUM",
			balanced,
			"SET work_mem = '64kB'", "SELECT count(*) > 0 FROM (SELECT filler, aid FROM pgbench_accounts ORDER BY filler, aid DESC OFFSET 1) sorted",
			"SET min_parallel_table_scan_size = 0", "SET parallel_setup_cost = 0", "SET parallel_tuple_cost = 0", "SET max_parallel_workers_per_gather = 2",
			"SELECT count(*) > 0 FROM pgbench_accounts WHERE filler IS NOT NULL",
			"CREATE TABLE scratch AS SELECT aid, filler FROM pgbench_accounts WHERE aid % 10 = 0", "CREATE INDEX ON scratch (filler, aid)",
			"TRUNCATE scratch", "DROP TABLE scratch")
		if err != nil || out != "t\nt\nt\nt" {
			p.Report("upkeep: %v, %q", err, out)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// Check compares what is in the tables with what the clients were told, while none works.
func (p *Postgres) Check(ctx context.Context) error {
	var bad []error
	got, err := p.Query(ctx, balanced, "SELECT count(*) FROM pgbench_history")
	if err != nil {
		return err
	}
	even, history, _ := strings.Cut(got, "\n")
	if even != "t" {
		bad = append(bad, errors.New("the sums of accounts, tellers, branches and history are not equal"))
	}
	if want := strconv.FormatInt(p.transactions.Load(), 10); history != want {
		bad = append(bad, fmt.Errorf("the history has %s transactions, pgbench counted %s", history, want))
	}
	all, err := p.Query(ctx, "SELECT client, n, md5(payload) FROM ledger ORDER BY client, n")
	if err != nil {
		return err
	}
	rows := strings.Split(all, "\n")
	i, wrong := 0, 0
	for client := range p.rows {
		for n := range p.rows[client] {
			want := fmt.Sprintf("%d|%d|%s", client, n, sum(entry(client, n)))
			if i >= len(rows) || rows[i] != want {
				if wrong++; wrong <= 5 {
					bad = append(bad, fmt.Errorf("row %d of the ledger: %q, want %q", i, rows[min(i, len(rows)-1)], want))
				}
			}
			i++
		}
	}
	if len(rows) != i && all != "" {
		bad = append(bad, fmt.Errorf("the ledger has %d rows, %d were acknowledged", len(rows), i))
	}
	return errors.Join(bad...)
}

// slow is what is said on a machine that is busy, or whose files are slow, as they are under faults. A worker of
// autovacuum began later than autovacuum_naptime after it was asked for, five seconds here (AutoVacLauncherMain and
// AutoVacWorkerMain, src/backend/postmaster/autovacuum.c). And one that has a table locked for longer than
// deadlock_timeout, a second, gives way to who waits for it (ProcSleep, src/backend/storage/lmgr/proc.c).
var slow = regexp.MustCompile(`WARNING:  autovacuum worker (took too long to start; canceled|started without a worker entry)$|ERROR:  canceling autovacuum task$`)

// Complaints are lines of the server's log, from that byte on, of one of these severities.
func (p *Postgres) Complaints(ctx context.Context, from int, severities ...string) ([]string, error) {
	log, err := p.Log(ctx)
	if err != nil {
		return nil, err
	}
	bad := regexp.MustCompile(`(?m)^.*\b(`+strings.Join(severities, "|")+`):.*$`).FindAllString(log[min(from, len(log)):], -1)
	bad = slices.DeleteFunc(bad, slow.MatchString)
	return bad[:min(len(bad), 5)], nil
}

// CheckFiles has PostgreSQL check its tables and indexes, stops it, and checks the sums of all pages.
func (p *Postgres) CheckFiles(ctx context.Context) (string, error) {
	if out, err := p.Lab.Nerdctl(ctx, "exec", p.Name, "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check"); err != nil || out != "" {
		return "", fmt.Errorf("pg_amcheck: %v\n%s", err, out)
	}
	if _, err := p.Lab.Nerdctl(ctx, "stop", "-t", "60", p.Name); err != nil {
		return "", err
	}
	return p.Inspect(ctx, lab.PostgresImage, "pg_checksums", "--check", "-D", "/data/db")
}
