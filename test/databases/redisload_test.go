package databases

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// redisLoad is what clients do to a Redis, and what they were told.
type redisLoad struct {
	*scene
	socket string
	// kept is, for each writer, the version of each of its keys that was acknowledged; 0: none, or deleted.
	kept [writers][keysOfWriter]int
	// lists are the lengths of the writers' lists.
	lists [writers]int
	// forks counts the children that wrote a snapshot or a new log.
	forks int
}

const (
	writers      = 3
	keysOfWriter = 2000
)

// run runs all clients until ctx ends.
func (l *redisLoad) run(ctx context.Context) {
	var wg sync.WaitGroup
	client := func(what string, work func(c *redisClient) error) {
		wg.Go(func() {
			c, err := dialRedis(l.socket)
			if err == nil {
				err = work(c)
				_ = c.Close() // the last answer has been read
			}
			if err != nil {
				l.Errorf("%s: %v", what, err)
			}
		})
	}
	for w := range l.kept {
		client(fmt.Sprintf("writer %d", w), func(c *redisClient) error { return l.write(ctx, c, w) })
	}
	client("who forks", func(c *redisClient) error { return l.fork(ctx, c) })
	wg.Wait()
}

// write sets and deletes keys of its own, adds to its list, and reads what it wrote, in batches whose answers it checks.
func (l *redisLoad) write(ctx context.Context, c *redisClient, w int) error {
	draw := rand.New(rand.NewPCG(uint64(w), 1))
	list := fmt.Sprintf("list:%d", w)
	for round := 1; ctx.Err() == nil; round++ {
		var batch [][]string
		var want []string
		now := l.kept[w]
		length := l.lists[w]
		for range 16 {
			k := draw.IntN(keysOfWriter)
			key := fmt.Sprintf("key:%d:%d", w, k)
			switch draw.IntN(8) {
			case 0:
				batch, want = append(batch, []string{"DEL", key}), append(want, strconv.Itoa(min(1, now[k])))
				now[k] = 0
			case 1:
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
		l.kept[w], l.lists[w] = now, length
		l.acknowledged.Add(int64(len(batch)))
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
func (l *redisLoad) fork(ctx context.Context, c *redisClient) error {
	for ctx.Err() == nil {
		command := []string{"BGSAVE", "BGREWRITEAOF"}[l.forks%2]
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
		l.forks++
	}
	return nil
}

// check reads everything and compares it with what the writers were told.
func (l *redisLoad) check() {
	l.Helper()
	c, err := dialRedis(l.socket)
	if err != nil {
		l.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var batch [][]string
	var want []string
	bad := 0
	ask := func(expected string, args ...string) {
		if args != nil {
			batch, want = append(batch, args), append(want, expected)
		}
		if len(batch) < 500 && args != nil {
			return
		}
		answers, err := c.do(batch...)
		if err != nil {
			l.Fatal(err)
		}
		for i, a := range answers {
			if a != want[i] {
				if bad++; bad <= 5 {
					l.Errorf("%q: %.80q, want %.80q", batch[i], a, want[i])
				}
			}
		}
		batch, want = nil, nil
	}
	keys := 0
	for w := range l.kept {
		for k, version := range l.kept[w] {
			keys += min(1, version)
			ask(value(w, k, version), "GET", fmt.Sprintf("key:%d:%d", w, k))
		}
		list := fmt.Sprintf("list:%d", w)
		keys += min(1, l.lists[w])
		ask(strconv.Itoa(l.lists[w]), "LLEN", list)
		for i := range l.lists[w] {
			ask(value(w, -1, i), "LINDEX", list, strconv.Itoa(i))
		}
	}
	ask(strconv.Itoa(keys), "DBSIZE")
	ask("") // what is left
}
