package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/programs"
)

// The server is killed under programs that work, and the layer is taken off without another: what was done and not answered is
// answered, and what was not done is made again below, so that each call is done once. `fusefs` TestStandIn kills servers
// at each place of each call.
func TestCallsAreDoneOnceWithoutAServer(t *testing.T) {
	const rounds, works = 4, 4
	for name, env := range map[string][]string{"sent again": nil, "found": noResend} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.env = append(slices.Clone(env), noTakeover...)
			h := r.start()
			var all []*recorder
			for i := range works {
				dir := filepath.Join(r.data, fmt.Sprint(i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				rec := &recorder{status: filepath.Join(t.TempDir(), "status")}
				rec.holder = r.launch("nsenter", "--target", fmt.Sprint(h.pid()), "--mount", programs.MustGo(t, "test/soak/recorder"), dir, rec.status)
				t.Cleanup(func() { _ = rec.cmd.Process.Kill() }) // it does not end by itself
				all = append(all, rec)
			}
			for range rounds {
				r.inject(h, r.data, "io error=EIO op=fsync path="+r.data+"/none ttl=5m")
				for _, rec := range all {
					rec.more("works on the layer", false)
				}
				r.killServer(syscall.SIGKILL)
				r.awaitUnmounted(h, time.Minute)
				for _, rec := range all {
					rec.more("goes on", false)
				}
				r.awaitOff(time.Minute, "the keeper does not come to its end")
			}
		})
	}
}
