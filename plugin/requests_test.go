package plugin

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/requests"
)

// What is sent to the agent's socket in a wrong form is answered with an error, or hung up on, and the agent goes on: on each of its paths that take something.
func TestHostileRequests(t *testing.T) {
	dir := t.TempDir()
	o := Options{Grafter: &node{}, StateDir: filepath.Join(dir, "state"), ContainerdAddress: filepath.Join(dir, "no.sock"), DisableNRI: true}
	a := startAgent(t, o)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := a.client.Health(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(o.StateDir, SocketName)
	for path, field := range map[string]string{"/v1/kernel": "container", "/v1/policies": "file", "/v1/stop": "reason", "/v1/start": "id"} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			all := requests.Hostile(path, field, path+"/")
			requests.Refused(t, socket, all, "/v1/healthz")
		})
	}
	if was, err := keeper.ReadStopped(o.StateDir); err != nil || was != nil {
		t.Errorf("the node is stopped: %+v, %v", was, err)
	}
	if all, err := a.client.Policies(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("policies: %+v, %v", all, err)
	}
}
