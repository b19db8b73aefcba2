package process

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A move that takes long, as on a busy machine: who opens the file meanwhile and maps it sees in the map what others,
// whose files are not moved yet, write to it.
func TestOpenInASlowMove(t *testing.T) {
	r := newRig(t)
	file := r.write("f", strings.Repeat("0123456789abcdef", 1024))
	r.env = []string{failing("swapper move", "stop:seize")}
	h := r.start()
	late := r.startWith("nsenter", "--target", strconv.Itoa(h.pid()), "--mount", binaries.holder)
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	h.ok("open a %s rdwr", file)
	moved := make(chan error, 1)
	go func() {
		_, err := r.run("update", g.ID, "--deadline", "20s", "io error=EIO op=write p=0 path="+file+" ttl=5m")
		moved <- err
	}()
	swapper := r.awaitStopped()
	if swapper == 0 {
		t.Fatal("no swapper stopped")
	}
	proceed := func() { _ = syscall.Kill(swapper, syscall.SIGCONT) } // it may have ended
	defer proceed()
	opened := late.begin("open b %s rdwr", file)
	mapped := func(answer string) {
		if !strings.HasPrefix(answer, "ok") {
			t.Fatalf("open: %s", answer)
		}
		late.ok("mmap S b 8192 shared")
		late.ok("mmap P b 8192 private")
		late.is("ok 0123", "peek S 0 4")
		late.is("ok 0123", "peek P 0 4")
	}
	select {
	case answer := <-opened: // before the move
		mapped(answer)
		h.ok("pwrite a 0 new")
		proceed()
		if err := <-moved; err != nil {
			t.Fatal(err)
		}
	case <-time.After(3 * time.Second):
		proceed()
		if err := <-moved; err != nil {
			t.Fatal(err)
		}
		mapped(<-opened)
		h.ok("pwrite a 0 new")
	}
	late.is("ok new3", "peek S 0 4")
	late.is("ok new3", "peek P 0 4")
	r.recover(g)
	late.is("ok new3", "peek S 0 4")
}
