package mountinfo

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	moby "github.com/moby/sys/mountinfo"
)

// escape is what the kernel does to a path or a name there.
var escape = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace

func line(m Info) string {
	optional := m.Optional
	if optional != "" {
		optional += " "
	}
	return fmt.Sprintf("%d %d %d:%d %s %s %s %s- %s %s %s\n", m.ID, m.Parent, m.Major, m.Minor, escape(m.Root), escape(m.Mountpoint), m.Options, optional,
		escape(m.FSType), escape(m.Source), m.VFSOptions)
}

// A line is as long as the path in it, and what is read in all has a bound.
func TestLongLines(t *testing.T) {
	deep := Info{
		ID: 30, Parent: 20, Major: 8, Minor: 1, Root: "/", Mountpoint: strings.Repeat("/"+strings.Repeat(" ", 250), 4000), Options: "rw", FSType: "tmpfs", Source: "x", VFSOptions: "rw",
	}
	after := Info{ID: 31, Parent: 30, Major: 8, Minor: 1, Root: "/", Mountpoint: "/after", Options: "rw", FSType: "tmpfs", Source: "y", VFSOptions: "rw"}
	text := line(deep) + line(after)
	if len(text) < 4_000_000 {
		t.Fatalf("%d bytes", len(text))
	}
	all, err := Read(strings.NewReader(text))
	if err != nil || len(all) != 2 || *all[0] != deep || *all[1] != after {
		t.Errorf("%d mounts, %v", len(all), err)
	}
	for _, c := range []struct {
		most int
		want error
	}{{len(text), nil}, {len(text) - 1, ErrTooLong}, {100, ErrTooLong}} {
		if _, err := read(strings.NewReader(text), int64(c.most)); !errors.Is(err, c.want) {
			t.Errorf("of %d bytes %d may be read: %v, want %v", len(text), c.most, err, c.want)
		}
	}
}

// The mounts of this machine are read as the library reads them that much of the container world uses.
func TestOwn(t *testing.T) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	likeMoby(t, text)
	if all, err := Own(); err != nil || len(all) == 0 {
		t.Errorf("%d mounts, %v", len(all), err)
	}
}

func likeMoby(t *testing.T, text []byte) {
	t.Helper()
	got, err := Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want, err := moby.GetMountsFromReader(bytes.NewReader(text), nil)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d mounts, moby has %d, %v", len(got), len(want), err)
	}
	for i := range want {
		if g, w := fmt.Sprintf("%+v", *got[i]), fmt.Sprintf("%+v", Info(infoOf(want[i]))); g != w {
			t.Errorf("mount %d:\n%s\nmoby:\n%s", i, g, w)
		}
	}
}

func infoOf(m *moby.Info) Info {
	return Info{
		ID: m.ID, Parent: m.Parent, Major: m.Major, Minor: m.Minor, Root: m.Root, Mountpoint: m.Mountpoint, Options: m.Options, Optional: m.Optional,
		FSType: m.FSType, Source: m.Source, VFSOptions: m.VFSOptions,
	}
}

// What the kernel writes for mounts of any names is read back, and as moby reads it.
func FuzzRead(f *testing.F) {
	f.Add("/", "/data", "tmpfs", "x", "shared:5 master:2", "rw,size=1k", true)
	f.Add("/a b", "/\t\n\\#", "fuse.faultgraft", "g-0123abcd", "", "rw,user_id=0", false)
	f.Add("/\\040", "/\xff-", "fuse", "-", "", "-", true)
	f.Add("", "", "", "", "", "", false)
	word := func(s string) string { return strings.NewReplacer(" ", "_", "\n", "_", "-", "_").Replace(s) }
	f.Fuzz(func(t *testing.T, root, point, fs, source, optional, options string, again bool) {
		m := Info{
			ID: 36, Parent: 35, Major: 98, Minor: 3, Root: root, Mountpoint: point, Options: "rw,noatime", Optional: strings.Join(strings.Fields(word(optional)), " "),
			FSType: fs, Source: source, VFSOptions: word(options),
		}
		text := line(m)
		if again {
			text += text
		}
		all, err := Read(strings.NewReader(text))
		if err != nil || *all[0] != m || (len(all) == 2) != again {
			t.Fatalf("%q: %+v, %v", text, all, err)
		}
		if len(text) < 60_000 && !strings.Contains(text, "\r") { // moby's lines are shorter, and lose a carriage return at their end
			likeMoby(t, []byte(text))
		}
	})
}

// Nothing that could be in the file harms who reads it.
func FuzzText(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"))
	f.Add([]byte("36 35 98:0 / /\\04 rw - ext3 x rw"))
	f.Add([]byte("1 2 3:4 / / rw -\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := read(bytes.NewReader(text), 1<<16)
		if err == nil && len(all) > bytes.Count(text, []byte("\n"))+1 {
			t.Errorf("%d mounts of %q", len(all), text)
		}
	})
}
