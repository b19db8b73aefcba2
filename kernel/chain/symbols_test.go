package chain

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someSymbols = `ffffffff81000000 T _text
ffffffff81001000 T vfs_read
ffffffff81001100 t do_work
ffffffff81001100 t alias_of_work
ffffffff81001180 t do_work.cold
ffffffff810011c0 t read_block.isra.0
ffffffff81001200 t twice
ffffffff81001300 t twice
ffffffff81001400 t split.part.0
ffffffff81001480 t split.constprop.0.isra.2
ffffffff81001500 d data
ffffffff81001600 T __x64_sys_mount
ffffffff81001700 T vfs_readlink
ffffffffc0001000 t ext4_mkdir	[ext4]
ffffffffc0002000 t bpf_prog_1_in0	[bpf]
`

func TestFind(t *testing.T) {
	s, err := parseSymbols(strings.NewReader(someSymbols))
	if err != nil {
		t.Fatal(err)
	}
	const k = 0xffffffff81000000
	for name, want := range map[string]function{
		"vfs_read":      {name: "vfs_read", whole: true, code: []addresses{{k + 0x1000, k + 0x1100}}},
		"do_work":       {name: "do_work", whole: true, code: []addresses{{k + 0x1100, k + 0x1180}, {k + 0x1180, k + 0x11c0}}, clones: []string{"do_work.cold"}},
		"alias_of_work": {name: "alias_of_work", whole: true, code: []addresses{{k + 0x1100, k + 0x1180}}},
		"read_block":    {name: "read_block", code: []addresses{{k + 0x11c0, k + 0x1200}}, clones: []string{"read_block.isra.0"}},
		"split":         {name: "split", code: []addresses{{k + 0x1400, k + 0x1480}, {k + 0x1480, k + 0x1500}}, clones: []string{"split.part.0", "split.constprop.0.isra.2"}},
		"ext4_mkdir":    {name: "ext4_mkdir", module: "ext4", whole: true, code: []addresses{{0xffffffffc0001000, 0xffffffffc0001000 + maxFunction}}},
	} {
		got, err := s.find(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(function{}, addresses{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for name, want := range map[string]string{
		"twice":          "2 functions of that name",
		"data":           "not a function that can be traced",
		"vfs_raed":       "did you mean vfs_read?",
		"sys_mount":      "did you mean __x64_sys_mount?",
		"bpf_prog_1_in0": "not a function that can be traced",
		"xfs_log_force":  "or does not exist",
	} {
		if _, err := s.find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestSymbolsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "no symbols",
		"ffffffff81001000 vfs_read\n": "line 1 is not a symbol",
		"vfs_read T 1\n":              "line 1 is not a symbol",
	} {
		if _, err := parseSymbols(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestHiddenAddresses(t *testing.T) {
	s, err := parseSymbols(strings.NewReader("0000000000000000 T vfs_read\n0000000000000000 t twice\n0000000000000000 t twice\n"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.find("vfs_read"); err != nil || !f.whole || !s.hidden {
		t.Errorf("found %v, %v, hidden %t", f, err, s.hidden)
	}
	if _, err := s.find("twice"); err == nil {
		t.Error("a name that two functions have is taken")
	}
}

func FuzzSymbols(f *testing.F) {
	f.Add(someSymbols, "vfs_read")
	f.Add("0 T a\n1 t a.isra.0\n", "a")
	f.Fuzz(func(t *testing.T, text, name string) {
		s, err := parseSymbols(strings.NewReader(text))
		if err != nil {
			return
		}
		found, err := s.find(name)
		if err != nil {
			return
		}
		for _, c := range found.code {
			if c.end <= c.start || c.end-c.start > maxFunction {
				t.Errorf("%q: code %x to %x", name, c.start, c.end)
			}
		}
	})
}

func TestLoaded(t *testing.T) {
	before := "ext4 1036288 1 jbd2, Live 0xffffffffc0a00000\n"
	used := "ext4 1036288 2 jbd2,xfs, Live 0xffffffffc0a00000\n"
	moved := "ext4 1036288 1 jbd2, Live 0xffffffffc0b00000\n"
	if loaded([]byte(before)) != loaded([]byte(used)) {
		t.Error("a module that has one more user is not another module")
	}
	if loaded([]byte(before)) == loaded([]byte(moved)) {
		t.Error("a module that was loaded again is taken for the same")
	}
}
