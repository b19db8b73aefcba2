package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// cost is what the processes that serve the places take.
type cost struct {
	rss, rssOpen, rssEnd map[string]float64 // MiB
	cpu                  map[string]float64 // ms over idleTime
}

const (
	idleTime  = 5 * time.Second
	openFiles = 1000
)

func newCost() *cost {
	return &cost{rss: map[string]float64{}, rssOpen: map[string]float64{}, rssEnd: map[string]float64{}, cpu: map[string]float64{}}
}

// atRest takes what the servers need that have nothing to do, and with files open.
func (c *cost) atRest(places []*place) error {
	before := map[string]float64{}
	for _, p := range places {
		v, err := p.sum(cpuMillis)
		if err != nil {
			return err
		}
		before[p.name] = v
	}
	time.Sleep(idleTime)
	for _, p := range places {
		v, err := p.sum(cpuMillis)
		if err != nil {
			return err
		}
		c.cpu[p.name] = v - before[p.name]
		if c.rss[p.name], err = p.sum(rssMiB); err != nil {
			return err
		}
	}
	for _, p := range places {
		if err := c.open(p); err != nil {
			return fmt.Errorf("%s with %d open files: %w", p.name, openFiles, err)
		}
	}
	return nil
}

// open measures a server while a program has files open.
func (c *cost) open(p *place) error {
	cmd := p.inside("/proc/self/exe", "target-hold", p.dir, strconv.Itoa(openFiles))
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
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	if err == nil {
		c.rssOpen[p.name], err = p.sum(rssMiB)
	}
	return errors.Join(err, in.Close(), cmd.Wait())
}

// atEnd takes what is left in memory after the work.
func (c *cost) atEnd(places []*place) (err error) {
	for _, p := range places {
		if c.rssEnd[p.name], err = p.sum(rssMiB); err != nil {
			return err
		}
	}
	return nil
}

// sum adds a figure of all processes that serve a place up.
func (p *place) sum(f func(pid int) (float64, error)) (float64, error) {
	var total float64
	for _, s := range p.servers {
		v, err := f(s)
		if err != nil {
			return 0, fmt.Errorf("server of %s: %w", p.name, err)
		}
		total += v
	}
	return total, nil
}

// cpuMillis is utime + stime of all threads (proc_pid_stat(5)); ticks are 1/100 s on every architecture of Linux.
func cpuMillis(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks float64
	for _, s := range fields[11:13] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, err
		}
		ticks += v
	}
	return ticks * 10, nil
}

func rssMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	var kib float64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return 0, fmt.Errorf("/proc/%d/status: VmRSS: %w", pid, err)
	}
	return kib / 1024, nil
}
