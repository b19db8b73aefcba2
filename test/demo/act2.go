package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// reads is the second container's program: 60 attempts to read a file, each
// answered with good or bad, then it waits. One attempt is one read(2).
const reads = `i=0
while [ $i -lt 60 ]; do
  i=$((i + 1))
  if dd if=/data/page of=/dev/null bs=4096 count=1 2>/dev/null; then echo good; else echo bad; fi
  sleep 0.05
done
echo done
exec sleep 1000`

// actLabel starts a container whose label carries the rule.
func (d *demo) actLabel(ctx context.Context) (err error) {
	const name = labelName
	data := filepath.Join(d.dir, "act2")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, "page"), make([]byte, 4096), 0o644); err != nil {
		return err
	}
	label := "wal.faultgraft.io=io error=EIO op=read path=/data/** p=50% seed=1 ttl=5m"
	say("  $ nerdctl run --name %s --label '%s' ...", name, label)
	id, err := d.lab.Nerdctl(ctx, "run", "-d", "--name", name, "--net", "none", "-v", data+":/data",
		"--label", label, lab.Image, "sh", "-c", reads)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.removeContainer(ctx, name)) }()
	g, err := d.awaitGraft(ctx, id)
	d.check(err == nil, "faultgraft saw the container and grafted its %s%s", g.Path, because(err))
	if err != nil {
		return err
	}
	var log string
	if err := await(ctx, 30*time.Second, "60 reads", func(ctx context.Context) (bool, error) {
		log, err = d.lab.Nerdctl(ctx, "logs", name)
		return strings.HasSuffix(log, "done"), err
	}); err != nil {
		return err
	}
	good, bad := strings.Count(log, "good"), strings.Count(log, "bad")
	d.check(good > 0 && bad > 0, "of 60 reads of one page %d failed with EIO: half, as the label's seed has it", bad)
	if err := d.checkCount(ctx, g.ID, bad, "failed reads"); err != nil {
		return err
	}
	say("  $ faultgraft recover %s", g.ID)
	if _, err := d.lab.Faultgraft(ctx, "recover", g.ID); err != nil {
		return err
	}
	_, err = d.lab.Nerdctl(ctx, "exec", name, "sh", "-ec",
		"i=0; while [ $i -lt 40 ]; do i=$((i + 1)); dd if=/data/page of=/dev/null bs=4096 count=1 2>/dev/null; done")
	d.check(err == nil, "40 more reads all work%s", because(err))
	return nil
}
