package workload

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// Redis is a Redis, what clients do to it, and what they were told.
type Redis struct {
	*Database
	// Sockets is a folder of the machine for its socket: its clients are outside of the container.
	Sockets string
	// kept is, for each writer, the version of each of its keys that was acknowledged; 0: none, or deleted.
	kept [writers][keysOfWriter]int
	// lists are the lengths of the writers' lists.
	lists [writers]int
	// Forks counts the children that wrote a snapshot or a new log.
	Forks int
}

const (
	writers      = 3
	keysOfWriter = 2000
	maxList      = 5000
)

// Start starts the server, with more options for nerdctl run.
func (r *Redis) Start(ctx context.Context, options ...string) error {
	if err := os.Chown(r.Sockets, lab.DatabaseUID, lab.DatabaseUID); err != nil {
		return err
	}
	err := r.Run(ctx, append(options, "-v", r.Sockets+":/run/redis", lab.RedisImage, "redis-server", "--dir", "/data", "--port", "0", "--unixsocket", "/run/redis/socket",
		"--appendonly", "yes", "--appendfsync", "always", "--save", "")...)
	if err != nil {
		return err
	}
	return r.Answers(ctx)
}

// Reset begins with no key, and a model of that.
func (r *Redis) Reset() error {
	c, err := r.dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // all answers have been read
	_, err = c.do([]string{"FLUSHALL"})
	clear(r.kept[:])
	clear(r.lists[:])
	return err
}

// Answers waits until the server does.
func (r *Redis) Answers(ctx context.Context) error {
	return Await(ctx, "Redis answers", func() error {
		c, err := r.dial()
		if err == nil {
			_, err = c.do([]string{"PING"}) // an error as long as it reads its files
			_ = c.Close()
		}
		return err
	})
}

func (r *Redis) dial() (*redisClient, error) { return dialRedis(filepath.Join(r.Sockets, "socket")) }

// Work runs all clients until ctx ends.
func (r *Redis) Work(ctx context.Context) {
	var wg sync.WaitGroup
	client := func(what string, work func(c *redisClient) error) {
		wg.Go(func() {
			c, err := r.dial()
			if err == nil {
				err = work(c)
				_ = c.Close() // the last answer has been read
			}
			if err != nil {
				r.Report("%s: %v", what, err)
			}
		})
	}
	for w := range r.kept {
		client(fmt.Sprintf("writer %d", w), func(c *redisClient) error { return r.write(ctx, c, w) })
	}
	client("who forks", func(c *redisClient) error { return r.fork(ctx, c) })
	wg.Wait()
}

// write sets and deletes keys of its own, adds to its list, and reads what it wrote, in batches whose answers it checks.
func (r *Redis) write(ctx context.Context, c *redisClient, w int) error {
	draw := rand.New(rand.NewPCG(uint64(w), 1))
	list := fmt.Sprintf("list:%d", w)
	for round := 1; ctx.Err() == nil; round++ {
		var batch [][]string
		var want []string
		now := r.kept[w]
		length := r.lists[w]
		for range 16 {
			k := draw.IntN(keysOfWriter)
			key := fmt.Sprintf("key:%d:%d", w, k)
			switch draw.IntN(8) {
			case 0:
				batch, want = append(batch, []string{"DEL", key}), append(want, strconv.Itoa(min(1, now[k])))
				now[k] = 0
			case 1:
				if length == maxList {
					batch, want = append(batch, []string{"DEL", list}), append(want, "1")
					length = 0
					break
				}
				batch, want = append(batch, []string{"RPUSH", list, value(w, -1, length)}), append(want, strconv.Itoa(length+1))
				length++
			case 2, 3:
				batch, want = append(batch, []string{"GET", key}), append(want, value(w, k, now[k]))
			default:
				batch, want = append(batch, []string{"SET", key, value(w, k, round)}), append(want, "OK")
				now[k] = round
			}
		}
		answers, err := c.do(batch...)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		for i, a := range answers {
			if a != want[i] {
				return fmt.Errorf("round %d: %.40q: answer %.80q, want %.80q", round, batch[i], a, want[i])
			}
		}
		r.kept[w], r.lists[w] = now, length
		r.Acknowledged.Add(int64(len(batch)))
		time.Sleep(2 * time.Millisecond) // the processors are faultgraft's, too
	}
	return nil
}

// value is what a writer sets a key to in a round; nothing for round 0.
func value(writer, key, round int) string {
	if round == 0 && key >= 0 {
		return ""
	}
	name := fmt.Sprintf("%d/%d/%d", writer, key, round)
	size := crc32.ChecksumIEEE([]byte(name)) % 3000
	return name + "/" + strings.Repeat(name, int(size)/len(name))
}

// fork has Redis fork: for a snapshot, and for a new log.
func (r *Redis) fork(ctx context.Context, c *redisClient) error {
	for ctx.Err() == nil {
		command := []string{"BGSAVE", "BGREWRITEAOF"}[r.Forks%2]
		if _, err := c.do([]string{command}); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		for {
			time.Sleep(50 * time.Millisecond)
			info, err := c.persistence()
			if err != nil {
				return err
			}
			for _, status := range []string{"rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status"} {
				if info[status] != "ok" {
					return fmt.Errorf("%s is %q", status, info[status])
				}
			}
			if info["rdb_bgsave_in_progress"]+info["aof_rewrite_in_progress"]+info["aof_rewrite_scheduled"] == "000" {
				break
			}
		}
		r.Forks++
	}
	return nil
}

// Check reads everything and compares it with what the writers were told, while none works.
func (r *Redis) Check() error {
	c, err := r.dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // all answers have been read
	var bad []error
	var batch [][]string
	var want []string
	flush := func() error {
		answers, err := c.do(batch...)
		if err != nil {
			return err
		}
		for i, a := range answers {
			if a != want[i] && len(bad) < 5 {
				bad = append(bad, fmt.Errorf("%q: %.80q, want %.80q", batch[i], a, want[i]))
			}
		}
		batch, want = batch[:0], want[:0]
		return nil
	}
	ask := func(expected string, args ...string) {
		batch, want = append(batch, args), append(want, expected)
		if len(batch) >= 500 && err == nil {
			err = flush()
		}
	}
	keys := 0
	for w := range r.kept {
		for k, version := range r.kept[w] {
			keys += min(1, version)
			ask(value(w, k, version), "GET", fmt.Sprintf("key:%d:%d", w, k))
		}
		list := fmt.Sprintf("list:%d", w)
		keys += min(1, r.lists[w])
		ask(strconv.Itoa(r.lists[w]), "LLEN", list)
		for i := range r.lists[w] {
			ask(value(w, -1, i), "LINDEX", list, strconv.Itoa(i))
		}
	}
	ask(strconv.Itoa(keys), "DBSIZE")
	if err == nil {
		err = flush()
	}
	return errors.Join(append(bad, err)...)
}

// Complaints are warnings in what Redis wrote from that byte on: "1:M 02 Jan 2026 03:04:05.678 # …".
func (r *Redis) Complaints(ctx context.Context, from int) ([]string, error) {
	log, err := r.Log(ctx)
	if err != nil {
		return nil, err
	}
	return regexp.MustCompile(`(?m)^\d+:\w .{24} # .*$`).FindAllString(log[min(from, len(log)):], 5), nil
}

// CheckFiles stops Redis and has its own programs check its files.
func (r *Redis) CheckFiles(ctx context.Context) (string, error) {
	if _, err := r.Lab.Nerdctl(ctx, "stop", "-t", "60", r.Name); err != nil {
		return "", err
	}
	aof, err := r.Inspect(ctx, lab.RedisImage, "redis-check-aof", "/data/appendonlydir/appendonly.aof.manifest")
	rdb, rerr := r.Inspect(ctx, lab.RedisImage, "redis-check-rdb", "/data/dump.rdb")
	return aof + "; " + rdb, errors.Join(err, rerr)
}
