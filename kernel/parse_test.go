package kernel

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	got, err := parseConfig([]byte("#\n# Automatically generated file\n#\nCONFIG_BPF=y\n# CONFIG_KPROBES is not set\n\nCONFIG_FUSE_FS=m\nCONFIG_LSM=\"lockdown,bpf\"\nCONFIG_HZ=250\nCONFIG_OFF=n\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := config{"CONFIG_BPF": "y", "CONFIG_FUSE_FS": "m", "CONFIG_LSM": "lockdown,bpf", "CONFIG_HZ": "250"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"CONFIG_KPROBES", "CONFIG_FUSE_FS"}, got.missing([]string{"CONFIG_BPF", "CONFIG_KPROBES", "CONFIG_FUSE_FS"})); d != "" {
		t.Error(d)
	}
	for _, wrong := range []string{"", "# nothing\n", "CONFIG_A\n", "HZ=250\n", "\x1f\x8b"} {
		if c, err := parseConfig([]byte(wrong)); err == nil {
			t.Errorf("%q was read as %v", wrong, c)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("CONFIG_BPF=y\n# CONFIG_KPROBES is not set\nCONFIG_LSM=\"a,b\"\n")
	f.Add("CONFIG_A=\"\nCONFIG_=\r\nCONFIG_B=n=")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig([]byte(text))
		if err != nil {
			if c != nil {
				t.Fatalf("settings beside %v", err)
			}
			return
		}
		for name, value := range c {
			if !strings.HasPrefix(name, "CONFIG_") || value == "n" && !strings.Contains(text, `"n"`) {
				t.Fatalf("%q is %q", name, value)
			}
			if built := len(c.missing([]string{name})) == 0; built != (value == "y") {
				t.Fatalf("%q is %q, built in: %t", name, value, built)
			}
		}
	})
}

func TestParseLSMs(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, "\n": nil, "bpf": {"bpf"}, "lockdown,capability,bpf\n": {"lockdown", "capability", "bpf"}, ",a,, b ,": {"a", "b"},
	} {
		if d := cmp.Diff(want, parseLSMs(text)); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
	if d := cmp.Diff([]string{"capability", "bpf", "ipe", "number 114", "number 3"}, namesOfLSMs([]uint64{100, 109, 113, 114, 3})); d != "" {
		t.Error(d)
	}
}

func FuzzParseLSMs(f *testing.F) {
	f.Add("lockdown,capability,landlock,bpf\n")
	f.Add(", ,\x00,")
	f.Fuzz(func(t *testing.T, text string) {
		names := parseLSMs(text)
		for _, n := range names {
			if n == "" || strings.Contains(n, ",") || strings.TrimSpace(n) != n || !strings.Contains(text, n) {
				t.Fatalf("%q from %q", n, text)
			}
		}
		if d := cmp.Diff(names, parseLSMs(strings.Join(names, ","))); d != "" {
			t.Fatal(d)
		}
	})
}

func TestParseSymbols(t *testing.T) {
	wanted := map[string]bool{"should_fail_bio": true, "should_failslab": true}
	text := "0000000000000000 T should_fail_bio\nffffffff81000000 d should_failslab\nffffffff81000000 t other [mod]\nshort\n"
	if d := cmp.Diff(map[string]bool{"should_fail_bio": true}, parseSymbols([]byte(text), wanted)); d != "" {
		t.Error(d)
	}
	if got := parseSymbols([]byte("0 d data\n"), wanted); got != nil {
		t.Errorf("no function is not the same as not known: %v", got)
	}
}

func TestParseInjectable(t *testing.T) {
	got := parseInjectable([]byte("should_fail_bio\tERRNO\nopen_ctree [btrfs]\tERRNO\n\n"))
	if d := cmp.Diff(map[string]errorKind{"should_fail_bio": kindErrno, "open_ctree": kindErrno}, got); d != "" {
		t.Error(d)
	}
}

// FuzzParseInjectable: each line names a function and a kind, and no line hides another.
func FuzzParseInjectable(f *testing.F) {
	f.Add("should_fail_bio\tERRNO\nopen_ctree [btrfs]\tERRNO\n\n")
	f.Add("name\n\tERRNO\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, kind := range parseInjectable([]byte(text)) {
			says := slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
				f := strings.Fields(line)
				return len(f) > 1 && f[0] == name && f[len(f)-1] == string(kind)
			})
			if !says {
				t.Errorf("%q is of kind %q by %q", name, kind, text)
			}
		}
		long := strings.Repeat("x", 100_000) + "\n" // longer than a bufio.Scanner takes
		if got := parseInjectable([]byte(text + "\n" + long + "last\tNULL\n"))["last"]; got != kindNull {
			t.Errorf("the line after %q is of kind %q", text, got)
		}
	})
}

// FuzzParseProcs: cgroup.procs is read whole, or not at all.
func FuzzParseProcs(f *testing.F) {
	f.Add("1\n0\n4711\n")
	f.Add("1\n-2\n")
	f.Add("1\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		pids, err := parseProcs(text)
		if err != nil {
			if pids != nil {
				t.Errorf("%v beside %v", pids, err)
			}
			return
		}
		if lines := strings.Count(strings.TrimSuffix(text, "\n")+"\n", "\n"); text != "" && len(pids) != lines {
			t.Errorf("%d processes in %d lines of %q", len(pids), lines, text)
		}
		for _, pid := range pids {
			if pid < 0 || !strings.Contains(text, strconv.Itoa(pid)) {
				t.Errorf("process %d of %q", pid, text)
			}
		}
	})
}

// FuzzUnderstand: what is pinned may be of any version. It is understood as it was written, or what all versions have is taken.
func FuzzUnderstand(f *testing.F) {
	whole, err := json.Marshal(memo{Version: memoVersion, Fault: Fault{ID: "k-1", Cgroup: Cgroup{ID: 7, Path: "/x"}, Owner: "o"}, Function: "should_failslab", Handle: 1, Started: 5, Ends: 6})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"version":99,"fault":{"id":"k-2","rule":7},"ends":1}`))
	f.Add([]byte(`{"fault":{"id":"k-2","rule":{"trigger":7}},"ends":-1,"started":9223372036854775807}`))
	f.Add([]byte(`{"version":1,"handle":5,"fault":{"id":"a"},"note":7}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := Pinned{ID: "k-0"}
		err := p.understand(text)
		if p.ID == "" {
			t.Errorf("%q takes the name away", text)
		}
		if err != nil {
			if p.memo.Handle != 0 || p.memo.Function != "" || p.Functions != nil {
				t.Errorf("%+v beside %v", p, err)
			}
			return
		}
		again, err := json.Marshal(p.memo)
		if err != nil {
			t.Fatal(err)
		}
		q := Pinned{ID: "k-0"}
		if err := q.understand(again); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		third, err := json.Marshal(q.memo)
		if err != nil || string(third) != string(again) || q.ID != p.ID || q.Cgroup != p.Cgroup || q.Owner != p.Owner {
			t.Errorf("%s, and %s (%v)", again, third, err)
		}
	})
}
