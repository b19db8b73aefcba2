package start

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

const cdiRule = "io error=EIO op=read path=/data/** ttl=5m"

// cdi installs a device where nerdctl of the lab and ctr look, and returns the
// lab's real runc: what is tested is the hook, without the wrapper.
func (s *scene) cdi(name string, rules ...string) (runc string) {
	s.Helper()
	args := []string{"cdi", name}
	for _, r := range rules {
		args = append(args, "--rule", r)
	}
	for _, dir := range []string{filepath.Join(s.lab.Dir(), "cdi"), "/run/cdi"} {
		out, err := s.lab.Faultgraft(s.ctx, append(args, "--install="+dir)...)
		if err != nil {
			s.Fatal(err)
		}
		file := filepath.Join(dir, "faultgraft.io-fault-"+name+".json")
		if out != "faultgraft.io/fault="+name+": "+file {
			s.Errorf("cdi --install printed %q", out)
		}
		s.Cleanup(func() {
			if _, err := s.lab.Run(s.ctx, "rm", file); err != nil {
				s.Error(err)
			}
		})
	}
	return filepath.Join(s.lab.Dir(), "shimpath", "runc")
}

// A container that is given a device has its faults before its program starts, by
// the agent, which knows them for what they are.
func TestCDIDevice(t *testing.T) {
	s := newScene(t)
	runc := s.cdi("eio", cdiRule)
	id := s.run("cdi-fault", "--runtime", runc, "--device", "faultgraft.io/fault=eio", lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	c := s.container(id)
	if c.State != plugin.StateActive || len(c.Grafts) != 1 || c.Labels["eio.faultgraft.io"] != cdiRule {
		t.Errorf("the agent has %+v", c)
	}
	s.nerdctl("restart", "--time", "1", "cdi-fault")
	s.wantLog("failed", "failed")

	_, err := s.lab.Ctr(s.ctx, "run", "--rm", "--runc-binary", runc, "--device", "faultgraft.io/fault=eio", "--mount", "type=bind,src="+s.data+",dst=/data,options=rbind:rw", lab.Image, "cdi-ctr", "cat", "/data/f")
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.ExitCode() != 1 || !strings.Contains(strings.ToLower(ce.Stderr), "i/o error") && !strings.Contains(strings.ToLower(ce.Stderr), "input/output error") {
		t.Errorf("ctr run cat: %v; want an I/O error", err)
	}
}

// enable.faultgraft.io=false beats a device.
func TestCDIDeviceExcluded(t *testing.T) {
	s := newScene(t)
	runc := s.cdi("eio", cdiRule)
	s.run("cdi-excluded", "--runtime", runc, "--device", "faultgraft.io/fault=eio", "--label", "enable.faultgraft.io=false", lab.Image, "sh", "-c", first)
	s.wantLog("read")
}

// An annotation, which nerdctl keeps in the OCI configuration only, is a rule to the agent too.
func TestNerdctlAnnotation(t *testing.T) {
	s := newScene(t)
	key, value, _ := strings.Cut(rule, "=")
	id := s.run("start-annotated", "--annotation", key+"="+value, lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	s.wantRuntimeLog(id, inForce)
}

// Without an agent the hook makes the device's grafts itself.
func TestCDIDeviceWithoutAgent(t *testing.T) {
	s := newScene(t)
	runc := s.cdi("eio", "wal="+cdiRule)
	s.killAgent()
	s.run("cdi-alone", "--runtime", runc, "--device", "faultgraft.io/fault=eio", lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	dir, err := s.lab.Path(plugin.DefaultStateDir)
	if err != nil {
		t.Fatal(err)
	}
	grafts, err := (&keeper.Client{StateDir: dir}).List(s.ctx)
	if err != nil || len(grafts) != 1 || grafts[0].Origin != keeper.OriginAnnotation || grafts[0].Rules[0].Name != "wal" {
		t.Errorf("grafts %+v, %v", grafts, err)
	}
	s.nerdctl("rm", "-f", "cdi-alone")
}

// container is what the agent knows of one.
func (s *scene) container(id string) plugin.Container {
	s.Helper()
	dir, err := s.lab.Path(plugin.DefaultStateDir)
	if err != nil {
		s.Fatal(err)
	}
	all, _, err := plugin.NewClient(dir).Containers(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	for _, c := range all {
		if c.ID == id {
			return c
		}
	}
	s.Fatalf("the agent does not know container %s", id)
	return plugin.Container{}
}
