package fusefs_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needProgram looks for it on the PATH. A test that misses it is skipped, but not
// where everything has to be there (.ci/run).
func needProgram(t *testing.T, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%v, and CI=true forbids to skip (contrib/lab/packages.sh suites)", err)
	default:
		t.Skipf("%v (apt-get install %s)", err, name)
	}
}

// stressors are those of stress-ng that work on files. Left out: getdent, which
// walks /, procfs, io-uring, whose IORING_OP_STATX fails on ext4 as well, and
// those that need no file.
var stressors = []string{
	"access", "aio", "aiol", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dnotify", "dup", "fallocate",
	"fanotify", "fcntl", "fiemap", "file-ioctl", "filename", "flock", "fpunch", "fsize", "fstat", "handle", "hdd", "inode-flags", "inotify", "io",
	"iomix", "lease", "link", "locka", "lockf", "lockofd", "mknod", "msync", "open", "readahead", "rename", "seek", "sendfile", "symlink",
	"sync-file", "touch", "utime", "verity", "xattr",
}

// F13: what stress-ng finds true of the file system below is true of the layer.
func TestStressNG(t *testing.T) {
	needProgram(t, "stress-ng")
	native, free, ruled := t.TempDir(), over(t, setup{}), over(t, setup{})
	ruled.rules("io error=EIO op=all p=0")
	type outcome struct {
		native string
		failed []string
	}
	got := make([]outcome, len(stressors))
	var all sync.WaitGroup
	at := make(chan struct{}, 6) // more at once than processors: each runs for a second
	for i, s := range stressors {
		all.Go(func() {
			at <- struct{}{}
			defer func() { <-at }()
			if got[i].native = stress(t, s, filepath.Join(native, s)); got[i].native != "" {
				return
			}
			for what, b := range map[string]*bench{"no rule": free, "a rule that never fires": ruled} {
				if said := stress(t, s, b.path(s)); said != "" {
					got[i].failed = append(got[i].failed, what+": "+said)
				}
			}
		})
	}
	all.Wait()
	for i, s := range stressors {
		t.Run(s, func(t *testing.T) {
			if got[i].native != "" {
				t.Skip("fails on the file system below, too: " + got[i].native)
			}
			for _, said := range got[i].failed {
				t.Error(said)
			}
		})
	}
}

// stress runs a stressor for a second; "" if it found nothing.
func stress(t *testing.T, stressor, dir string) string {
	err := unix.Mkdir(dir, 0o777)
	said := ""
	if err == nil {
		said, err = suite(t, "stress-ng", "--"+stressor, "1", "--timeout", "1", "--verify", "--temp-path", dir, "--log-brief", "--no-rand-seed")
	}
	if err != nil {
		return err.Error() + "\n" + said
	}
	return ""
}

// suite runs a program that must not take long.
func suite(t *testing.T, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it ends its children
	cmd.WaitDelay = 5 * time.Second
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), errors.Join(err, ctx.Err())
}

// F6, F13: data written in every way that fio knows is there afterwards, read
// through the layer and below it.
func TestFioVerify(t *testing.T) {
	needProgram(t, "fio")
	for name, rules := range map[string][]string{
		"no rule": {}, "other path": {"io error=EIO op=all path=/data/elsewhere/**"}, "rule that never fires": {"io error=EIO op=data p=0"},
	} {
		t.Run(name, func(t *testing.T) {
			b := over(t, setup{})
			b.rules(rules...)
			jobs := filepath.Join(t.TempDir(), "jobs")
			must(t, os.WriteFile(jobs, []byte(fioJobs), 0o644))
			for _, step := range []struct{ what, dir, flag string }{
				{"write and read through the layer", b.mnt, ""}, {"read below", b.back, "--verify_only"},
			} {
				args := []string{"fio", "--directory=" + step.dir, "--aux-path=" + t.TempDir()}
				if step.flag != "" {
					args = append(args, step.flag)
				}
				if out, err := suite(t, append(args, jobs)...); err != nil || strings.Contains(out, "verify:") {
					t.Fatalf("%s: %v\n%s", step.what, err, out)
				}
			}
		})
	}
}

const fioJobs = `[global]
size=8M
verify=crc32c
verify_fatal=1
randrepeat=1
group_reporting
[psync]
ioengine=psync
rw=randwrite
bsrange=1k-128k
bs_unaligned
numjobs=2
[append-and-sync]
ioengine=psync
rw=write
bs=7k
fsync=64
[vectors]
ioengine=pvsync2
rw=randrw
bsrange=4k-2m
[libaio]
ioengine=libaio
iodepth=8
rw=randwrite
bsrange=4k-64k
[libaio-direct]
ioengine=libaio
iodepth=8
direct=1
rw=randwrite
bsrange=4k-64k
[io_uring]
ioengine=io_uring
iodepth=8
rw=randrw
bsrange=4k-64k
[io_uring-fixed]
ioengine=io_uring
iodepth=8
fixedbufs
registerfiles
rw=randwrite
bs=8k
[mmap]
ioengine=mmap
rw=randwrite
bsrange=4k-32k
fsync=32
[splice]
ioengine=splice
rw=write
bs=64k
`
