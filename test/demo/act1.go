package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// round is what test/demo/writer prints.
type round struct {
	N     uint64 `json:"n"`
	FD    int    `json:"fd"`
	Write string `json:"write"`
	Fsync string `json:"fsync"`
	Msync string `json:"msync"`
}

func (r round) String() string {
	word := func(s string) string {
		if s == "" {
			return "ok"
		}
		return s
	}
	return fmt.Sprintf("round %d: write on fd %d %s, fsync %s, msync of the map %s", r.N, r.FD, word(r.Write), word(r.Fsync), word(r.Msync))
}

// actRunning breaks and heals a program that has its files open already.
func (d *demo) actRunning(ctx context.Context) (err error) {
	const name = writerName
	data := filepath.Join(d.dir, "act1")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	say("  A writer fsyncs a log through a descriptor, and msyncs a memory map, ten times a second. Both files stay open.")
	_, err = d.lab.Nerdctl(ctx, "run", "-d", "--name", name, "--net", "none", "-v", data+":/data",
		"-v", filepath.Join(d.dir, "bin")+":/opt:ro", lab.Image, "/opt/writer", "/data")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.removeContainer(ctx, name)) }()
	pid, err := d.containerPID(ctx, name)
	if err != nil {
		return err
	}
	healthy, err := d.awaitRound(ctx, name, 0, func(r round) bool { return r.N >= 3 && r.Fsync == "" && r.Msync == "" })
	if err != nil {
		return err
	}
	say("         %s", healthy)
	before, err := d.lab.Snapshot(pid)
	if err != nil {
		return err
	}

	rule := "io error=EIO op=fsync+fdatasync ttl=1m" // the kernel makes an fdatasync of msync(2)
	say("  $ faultgraft inject %s --path /data '%s'", name, rule)
	graft, err := d.inject(ctx, name, "--path", "/data", rule)
	if err != nil {
		return err
	}
	broken, err := d.awaitRound(ctx, name, healthy.N, func(r round) bool { return r.Fsync == "EIO" && r.Msync == "EIO" })
	d.check(err == nil, "fsync and msync fail now%s", because(err))
	if err != nil {
		return err
	}
	say("         %s", broken)
	d.check(broken.FD == healthy.FD && broken.Write == "", "on the descriptor that was open before (%d); writes still work", healthy.FD)

	say("  $ faultgraft recover %s", graft)
	if _, err := d.lab.Faultgraft(ctx, "recover", graft); err != nil {
		return err
	}
	healed, err := d.awaitRound(ctx, name, broken.N, func(r round) bool { return r.Fsync == "" && r.Msync == "" })
	d.check(err == nil, "both work again%s", because(err))
	if err != nil {
		return err
	}
	say("         %s", healed)
	now, err := d.containerPID(ctx, name)
	d.check(err == nil && now == pid, "it is the same process, %d%s", pid, because(err))
	settle, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	left, err := d.lab.Settle(settle, before)
	d.check(err == nil && len(left) == 0, "its mounts, descriptors, folders and maps are as before the fault%s", because(err))
	for _, l := range left {
		say("         %s", l)
	}
	return d.checkWriter(ctx, name, data, graft)
}

// checkWriter stops the writer and compares all that it said with the files and with the log of faults.
func (d *demo) checkWriter(ctx context.Context, name, data, graft string) error {
	if _, err := d.lab.Nerdctl(ctx, "kill", name); err != nil {
		return err
	}
	if _, err := d.lab.Nerdctl(ctx, "wait", name); err != nil {
		return err
	}
	rounds, err := d.rounds(ctx, name)
	if err != nil {
		return err
	}
	failed, odd := 0, 0
	for _, r := range rounds {
		for _, e := range []string{r.Fsync, r.Msync} {
			switch e {
			case "":
			case "EIO":
				failed++
			default:
				odd++
			}
		}
		if r.Write != "" {
			odd++
		}
	}
	d.check(odd == 0, "no call failed with anything but the EIO that was asked for")
	if err := d.checkCount(ctx, graft, failed, "times EIO"); err != nil {
		return err
	}
	lines, err := os.ReadFile(filepath.Join(data, "log"))
	if err != nil {
		return err
	}
	last := rounds[len(rounds)-1].N
	missing := 0
	for n := uint64(1); n <= last; n++ {
		if strings.Count(string(lines), fmt.Sprintf("%08d\n", n)) != 1 {
			missing++
		}
	}
	d.check(missing == 0, "all %d lines that were written are in the log, each once", last)
	counter, err := os.ReadFile(filepath.Join(data, "map"))
	if err != nil {
		return err
	}
	d.check(len(counter) == 4096 && binary.LittleEndian.Uint64(counter) >= last, "the memory map's last value is in its file")
	return nil
}

// awaitRound waits for a round after n that is as wanted.
func (d *demo) awaitRound(ctx context.Context, name string, n uint64, want func(round) bool) (found round, err error) {
	var last string
	err = await(ctx, 10*time.Second, "the writer", func(ctx context.Context) (bool, error) {
		rounds, err := d.rounds(ctx, name)
		if err != nil {
			return false, err
		}
		for _, r := range rounds {
			if last = r.String(); r.N > n && want(r) {
				found = r
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil && last != "" {
		err = fmt.Errorf("%w (%s)", err, last)
	}
	return found, err
}

// rounds reads what the writer said so far.
func (d *demo) rounds(ctx context.Context, name string) ([]round, error) {
	out, err := d.lab.Nerdctl(ctx, "logs", name)
	if err != nil {
		return nil, err
	}
	var all []round
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		var r round
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("the writer said %q: %w", lines.Text(), err)
		}
		all = append(all, r)
	}
	if len(all) == 0 {
		return nil, errors.New("the writer said nothing")
	}
	return all, lines.Err()
}

func (d *demo) containerPID(ctx context.Context, name string) (int, error) {
	out, err := d.lab.Nerdctl(ctx, "inspect", "-f", "{{.State.Pid}}", name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// removeContainer works also when the act was interrupted.
func (d *demo) removeContainer(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	_, err := d.lab.Nerdctl(ctx, "rm", "-f", name)
	return err
}
