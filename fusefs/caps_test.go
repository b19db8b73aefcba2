package fusefs_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A caller that is not root but may pass permission checks makes files where it could below, and owns them.
func TestCallerWithCapabilities(t *testing.T) {
	b := over(t, setup{})
	must(t, unix.Mkdir(b.under("private"), 0o700))
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			t.Error(err)
			return
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 1234, 1234, 1234); e != 0 {
			t.Error(e)
			return
		}
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		caps := [2]unix.CapUserData{{Effective: 1 << unix.CAP_DAC_OVERRIDE, Permitted: 1 << unix.CAP_DAC_OVERRIDE}}
		if err := unix.Capset(&head, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		for _, p := range []string{b.under("private/below"), b.path("private/up")} {
			if err := openClose(p, unix.O_CREAT|unix.O_WRONLY, 0o600); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
	}()
	<-done
	var st unix.Stat_t
	if err := unix.Stat(b.under("private/up"), &st); err != nil || st.Uid != 1234 {
		t.Errorf("uid %d, %v", st.Uid, err)
	}
}
