package databases

import (
	"bufio"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// postgresLoad is what clients do to a PostgreSQL, and what they were told.
type postgresLoad struct {
	*scene
	// rows of each client of the ledger that were acknowledged, the first is row 0.
	rows [2]int
	// transactions that pgbench counted.
	transactions atomic.Int64
}

// balanced is what holds after each transaction of pgbench's tpcb-like script.
const balanced = `SELECT a = b AND b = t AND t = h FROM
	(SELECT coalesce(sum(abalance), 0) AS a FROM pgbench_accounts) a, (SELECT coalesce(sum(bbalance), 0) AS b FROM pgbench_branches) b,
	(SELECT coalesce(sum(tbalance), 0) AS t FROM pgbench_tellers) t, (SELECT coalesce(sum(delta), 0) AS h FROM pgbench_history) h`

// run runs all clients until ctx ends.
func (l *postgresLoad) run(ctx context.Context) {
	var wg sync.WaitGroup
	for client := range l.rows {
		wg.Go(func() {
			if err := l.ledger(ctx, client); err != nil {
				l.Errorf("client %d of the ledger, row %d: %v", client, l.rows[client], err)
			}
		})
	}
	// Not as much as they can: the processors are faultgraft's, too.
	wg.Go(func() { l.bench(ctx, "-c", "4", "-j", "2", "-R", "200") })
	wg.Go(func() { l.bench(ctx, "-c", "2", "-R", "20", "-C") }) // a new backend for each transaction
	wg.Go(func() { l.upkeep(ctx) })
	wg.Wait()
}

// ledger inserts row after row, each when the one before is acknowledged, in one session that works in the volume.
func (l *postgresLoad) ledger(ctx context.Context, client int) (err error) {
	cmd, err := l.lab.Command(l.ctx, "nerdctl", "exec", "-i", "-w", "/data", l.name, "psql", "-XqAt", "-v", "ON_ERROR_STOP=1")
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
	for ctx.Err() == nil {
		n := l.rows[client]
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
		l.rows[client]++
		l.acknowledged.Add(1)
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
func (l *postgresLoad) bench(ctx context.Context, args ...string) {
	for ctx.Err() == nil {
		out, err := l.lab.Nerdctl(l.ctx, append([]string{"exec", l.name, "pgbench", "-n", "-T", "3"}, args...)...)
		m := processed.FindStringSubmatch(out)
		if err != nil || m == nil || !strings.Contains(out, "number of failed transactions: 0 ") {
			l.Errorf("pgbench: %v\n%s", err, out)
			return
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			l.Error(err)
			return
		}
		l.transactions.Add(n)
		l.acknowledged.Add(n)
	}
}

// upkeep does what administrators and reports do: new files, temporary files, files that go, processes that share memory.
func (l *postgresLoad) upkeep(ctx context.Context) {
	for ctx.Err() == nil {
		out, err := l.psql("CHECKPOINT", "SELECT pg_switch_wal() IS NOT NULL", "VACUUM",
			balanced,
			"SET work_mem = '64kB'", "SELECT count(*) > 0 FROM (SELECT filler, aid FROM pgbench_accounts ORDER BY filler, aid DESC OFFSET 1) sorted",
			"SET min_parallel_table_scan_size = 0", "SET parallel_setup_cost = 0", "SET parallel_tuple_cost = 0", "SET max_parallel_workers_per_gather = 2",
			"SELECT count(*) > 0 FROM pgbench_accounts WHERE filler IS NOT NULL",
			"CREATE TABLE scratch AS SELECT aid, filler FROM pgbench_accounts WHERE aid % 10 = 0", "CREATE INDEX ON scratch (filler, aid)",
			"TRUNCATE scratch", "DROP TABLE scratch")
		if err != nil || out != "t\nt\nt\nt" {
			l.Errorf("upkeep: %v, %q", err, out)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
