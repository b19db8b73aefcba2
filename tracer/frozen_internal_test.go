package tracer

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/mountinfo"
)

func TestCgroupMounts(t *testing.T) {
	got := cgroupMounts(mountsOf(t, `30 20 0:27 / /sys/fs/cgroup/free\040zer rw,relatime - cgroup cgroup rw,freezer
31 20 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 20 0:29 /sub /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw
`))
	want := []cgroupMount{{false, "/", "/sys/fs/cgroup/free zer"}, {true, "/sub", "/sys/fs/cgroup/unified"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, c := range []struct {
		root, cgroup, want string
		ok                 bool
	}{
		{"/", "/a/b", "/a/b", true}, {"/a", "/a/b", "/b", true}, {"/a", "/a", "/", true},
		{"/a", "/ab", "", false}, {"/", "/../x", "", false},
	} {
		if got, ok := belowRoot(c.root, c.cgroup); ok != c.ok || ok && got != c.want {
			t.Errorf("%s below %s: %q %v", c.cgroup, c.root, got, ok)
		}
	}
}

func mountsOf(t *testing.T, text string) []*mountinfo.Info {
	t.Helper()
	all, err := mountinfo.Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func FuzzCgroupMounts(f *testing.F) {
	f.Add([]byte("30 20 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), []byte("0::/a\n5:freezer:/b\n"))
	f.Fuzz(func(t *testing.T, mounts, cgroup []byte) {
		all, err := mountinfo.Read(bytes.NewReader(mounts))
		if err != nil {
			return
		}
		fr := freezer{mounts: cgroupMounts(all)}
		for i := range fr.mounts {
			fr.mounts[i].point = "/nonexistent" // nothing of the machine is looked at
		}
		if got := fr.frozen(cgroup); got != "" {
			t.Errorf("frozen by %q", got)
		}
	})
}
