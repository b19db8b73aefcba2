package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// row is one figure of every place: MB/s are better when high, µs per operation when low.
type row struct {
	name   string
	higher bool
	goals  []goal
	run    func(p *place) (float64, error)
}

// goal is what the issue tracker asks of one column against another.
type goal struct {
	column, than string
	ratio        float64
}

// fileSize is how much fio reads and writes again and again: it stays in memory.
const fileSize = 128 << 20

func (b *bench) rows() []row {
	data := []goal{{"idle", "native", 0.95}, {"p=0", "go-fuse direct", 1}}
	out := []row{}
	if _, err := exec.LookPath("fio"); err != nil {
		fmt.Println("reads and writes are left out: fio is not installed")
	} else {
		for _, j := range []struct{ name, rw, bs string }{
			{"sequential read 1 MiB", "read", "1M"}, {"sequential write 1 MiB", "write", "1M"},
			{"random read 4 KiB", "randread", "4k"}, {"random write 4 KiB", "randwrite", "4k"},
		} {
			out = append(out, row{j.name, true, data, func(p *place) (float64, error) { return b.fio(p, j.rw, j.bs) }})
		}
	}
	idle := func(ratio float64) []goal { return []goal{{"idle", "native", ratio}} }
	for _, m := range []struct {
		name, op string
		size     int // of the files that are made first, below, so that no server knows them; -1: none
		goals    []goal
	}{
		{"create", "create", -1, idle(2.5)},
		{"open+read+close", "open", 4096, idle(12)},
		{"open+read+close, cold", "open-new", 4096, idle(12)},
		{"stat, cold", "stat-new", 0, idle(10)},
		{"stat, warm", "stat-same", 0, idle(1.1)},
		{"unlink", "unlink", 0, idle(12)},
		{"one round trip", "statx", 0, nil},
	} {
		out = append(out, row{m.name, false, m.goals, func(p *place) (float64, error) { return b.meta(p, m.op, m.size) }})
	}
	return out
}

// fio measures from a warm cache: what fio drops of the layer's file it would
// not drop of the one below.
func (b *bench) fio(p *place, rw, bs string) (float64, error) {
	if err := fill(filepath.Join(p.back, "fio")); err != nil {
		return 0, err
	}
	text, err := p.inside("fio", "--name=b", "--filename="+p.dir+"/fio", "--size="+strconv.Itoa(fileSize), "--ioengine=psync", "--rw="+rw, "--bs="+bs,
		"--time_based", fmt.Sprintf("--runtime=%dms", b.runtime.Milliseconds()), "--randseed=1", "--output-format=json", "--fallocate=none", "--invalidate=0").Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w: %s", err, text)
	}
	var r struct {
		Jobs []struct {
			Read, Write struct {
				BW float64 `json:"bw_bytes"`
			}
		}
	}
	if err := json.Unmarshal(text, &r); err != nil || len(r.Jobs) == 0 {
		return 0, fmt.Errorf("fio's answer: %w", err)
	}
	return (r.Jobs[0].Read.BW + r.Jobs[0].Write.BW) / 1e6, nil
}

// fill makes fio's file once, whole and in the page cache.
func fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for range fileSize / len(block) {
		if _, err := f.Write(block); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// meta lets a program in the place do one operation on many files. Their names
// are new each time.
func (b *bench) meta(p *place, op string, size int) (float64, error) {
	b.batch++
	prefix := fmt.Sprintf("m%d-", b.batch)
	for i := range metaFiles {
		if size < 0 {
			break
		}
		if err := os.WriteFile(filepath.Join(p.back, prefix+strconv.Itoa(i)), make([]byte, size), 0o644); err != nil {
			return 0, err
		}
	}
	text, err := p.inside("/proc/self/exe", "target-meta", op, filepath.Join(p.dir, prefix)).Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}

const (
	metaFiles = 1000    // how many files one measurement of metadata works on
	warmNames = 100     // how many names are looked up right before they are used: caches last half a second
	warmStats = 100_000 // how often one file is looked at
)

// meta does one operation on many files, and returns µs for each.
func meta(op, prefix string) (float64, error) {
	name := func(i int) string { return prefix + strconv.Itoa(i) }
	var st unix.Stat_t
	var stx unix.Statx_t
	buf := make([]byte, 4096)
	stat := func(i int) error { return unix.Stat(name(i), &st) }
	unlink := func(i int) error { return unix.Unlink(name(i)) }
	open := func(i int) error {
		fd, err := unix.Open(name(i), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if n, err := unix.Read(fd, buf); err != nil || n != len(buf) {
			return fmt.Errorf("read %d bytes: %w", n, err)
		}
		return unix.Close(fd)
	}
	m, ok := map[string]struct {
		warm, run func(int) error
		times     int
	}{
		"create": {nil, func(i int) error {
			fd, err := unix.Open(name(i), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}, metaFiles},
		"open":      {stat, open, metaFiles},
		"open-new":  {nil, open, metaFiles},
		"stat-new":  {nil, stat, metaFiles},
		"stat-same": {nil, func(int) error { return unix.Stat(name(0), &st) }, warmStats},
		"unlink":    {stat, unlink, metaFiles},
		// what the kernel has cached does not count here: one GETATTR each
		"statx": {nil, func(int) error {
			return unix.Statx(unix.AT_FDCWD, name(0), unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &stx)
		}, metaFiles},
	}[op]
	if !ok {
		return 0, fmt.Errorf("no operation %q", op)
	}
	var took time.Duration
	for at := 0; at < m.times; at += warmNames {
		for i := at; i < at+warmNames && m.warm != nil; i++ {
			if err := m.warm(i); err != nil {
				return 0, err
			}
		}
		start := time.Now()
		for i := at; i < at+warmNames; i++ {
			if err := m.run(i); err != nil {
				return 0, err
			}
		}
		took += time.Since(start)
	}
	for i := range metaFiles {
		if err := unlink(i); err != nil && op != "unlink" {
			return 0, err
		}
	}
	return float64(took.Nanoseconds()) / 1e3 / float64(m.times), nil
}
