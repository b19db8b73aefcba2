package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The unit that is installed: systemd takes it, its commands are there, and what ends one process of the unit does not end
// the others, which hold the layers of running containers (systemd.service(5), systemd.kill(5)).
func TestSystemdUnit(t *testing.T) {
	b, err := os.ReadFile("../../contrib/systemd/faultgraft.service")
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for l := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(l), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = value
		}
	}
	for key, want := range map[string]string{
		"KillMode":                 "process",  // a stop, or a restart, ends the agent alone
		"OOMPolicy":                "continue", // so does a server that the OOM killer ends
		"StartLimitIntervalSec":    "0",        // the agent is started again, however often it was killed
		"RuntimeDirectoryPreserve": "yes",      // keepers' sockets
	} {
		if settings[key] != want {
			t.Errorf("%s=%s, want %s", key, settings[key], want)
		}
	}
	const program = "/usr/local/bin/faultgraft"
	for _, key := range []string{"ExecStart", "ExecStopPost"} {
		args := strings.Fields(strings.TrimPrefix(settings[key], "-"))
		if len(args) < 2 || args[0] != program {
			t.Fatalf("%s=%s", key, settings[key])
		}
		c, rest, err := newRootCommand().Find(args[1:])
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err != nil || c.Hidden || c.Name() != args[1] {
			t.Errorf("%s=%s: %v", key, settings[key], err)
		}
	}
	t.Run("systemd", func(t *testing.T) {
		analyze, err := exec.LookPath("systemd-analyze")
		if err != nil {
			t.Skip("no systemd-analyze (Debian's package systemd)")
		}
		unit := filepath.Join(t.TempDir(), "faultgraft.service")
		installed := strings.ReplaceAll(string(b), program, "/bin/true") // it has to be there
		if err := os.WriteFile(unit, []byte(installed), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || strings.Contains(string(out), unit) {
			t.Errorf("%v: %s", err, out)
		}
	})
}
