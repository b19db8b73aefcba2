package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func validate(args ...string) (string, error) {
	var out bytes.Buffer
	c := newRootCommand()
	c.SetArgs(append([]string{"validate"}, args...))
	c.SetOut(&out)
	err := c.Execute()
	return out.String(), err
}

func TestValidateExplains(t *testing.T) {
	got, err := validate("--rule", "io corrupt=zero(4,16) op=data path=/data/** comm=dd delay=1s", "--rule", "io quota=0 path=/d")
	want := `ok  io corrupt=zero(4,16) op=read+write+mmap-read path=/data/** comm=dd delay=1s ttl=10m0s
    does   has bytes become 0, in 4 places of up to 16 bytes
    on     read, write and mmap-read
    path   /data/**
    by     threads named dd
    when   all of them
    from   1s after its activation on
    until  a ttl of 10m0s is over
    seed   drawn when the rule is applied, and shown there
    layer  over /data
ok  io quota=0 path=/d ttl=10m0s
    does   fails with EDQUOT if it takes space; statfs agrees
    on     mknod, mkdir, symlink, link, create, tmpfile, write, statfs, setxattr, fallocate, copy_file_range and mmap-write
    path   /d
    when   all of them
    from   its activation on
    until  a ttl of 10m0s is over
    layer  over /d
`
	if err != nil || got != want {
		t.Errorf("got\n%s%v\nwant\n%s", got, err, want)
	}
}

func TestValidateOutput(t *testing.T) {
	for _, output := range []string{"json", "yaml"} {
		got, err := validate("-o", output, "--rule", "io latency=uniform(1ms,3ms) torn=sectors error=EIO:2,ENOSPC op=write path=/d offset=4KiB-", "--rule", "io banana")
		if err == nil || !strings.Contains(err.Error(), `"banana" is not a field`) {
			t.Errorf("%s: the second rule: %v", output, err)
		}
		text, err := yaml.YAMLToJSONStrict([]byte(got))
		var rules []struct {
			IO struct {
				Ops     string
				Latency struct{ Kind string }
				Torn    struct{ Kind string }
				Errors  []struct {
					Errno  string
					Weight int
				}
				Offset struct{ From, To uint64 }
			}
			Canonical, GraftPath string
			Meaning              []struct{ Name, Text string }
		}
		if err == nil {
			err = json.Unmarshal(text, &rules)
		}
		if err != nil || len(rules) != 1 {
			t.Fatalf("%s: %v\n%s", output, err, got)
		}
		r := rules[0]
		if r.IO.Ops != "write" || r.IO.Latency.Kind != "uniform" || r.IO.Torn.Kind != "sectors" || len(r.IO.Errors) != 2 || r.IO.Errors[0].Errno != "EIO" ||
			r.IO.Offset.From != 4096 || r.IO.Offset.To != 1<<64-1 || r.GraftPath != "/d" || len(r.Meaning) == 0 {
			t.Errorf("%s: %+v\n%s", output, r, got)
		}
		if want := "io latency=uniform(1ms,3ms) error=EIO:2,ENOSPC:1 torn=sectors(512) op=write path=/d offset=4KiB- ttl=10m0s"; r.Canonical != want {
			t.Errorf("%s: canonical %q, want %q", output, r.Canonical, want)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	out, err := validate("--rule", "io short=512 op=fsync path=/d")
	want := `rule: column 17: short means nothing for fsync; it is for read and write
  io short=512 op=fsync path=/d
                  ^`
	if err == nil || err.Error() != want || out != "" {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := validate(); err == nil || !strings.Contains(err.Error(), "--rule") {
		t.Errorf("without a rule: %v", err)
	}
}

// TestValidateHelp shows that the help names every field that a wrong one is answered with.
func TestValidateHelp(t *testing.T) {
	_, err := validate("--rule", "io banana=1")
	if err == nil {
		t.Fatal("no error")
	}
	_, list, ok := strings.Cut(err.Error(), "the fields are ")
	if !ok {
		t.Fatalf("the error lists no fields: %v", err)
	}
	list, _, _ = strings.Cut(list, "\n")
	help, err := validate("--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Split(list, ", ") {
		if !strings.Contains(help, field) {
			t.Errorf("the help does not name %s", field)
		}
	}
}
