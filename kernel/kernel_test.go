package kernel

import (
	"testing"
)

// TestProbe runs on whatever kernel is there, with whatever privileges.
func TestProbe(t *testing.T) {
	type key struct{ hook, backend string }
	seen := map[key]bool{}
	for _, b := range Probe() {
		k := key{b.Hook, b.Name}
		if seen[k] {
			t.Errorf("%v is there twice", k)
		}
		seen[k] = true
		if b.OK != (b.Reason == "") {
			t.Errorf("%v: OK is %t, the reason is %q", k, b.OK, b.Reason)
		}
		if b.OK && b.Target == "" {
			t.Errorf("%v is OK on no function", k)
		}
		t.Logf("%-8s %-8s %-5t %s: %s", b.Hook, b.Name, b.OK, b.Target, b.Reason)
	}
	for _, hook := range []string{HookSlab, HookPage, HookBio, HookFunction, HookSyscall, HookLSM} {
		for _, backend := range []string{FmodRet, Override, LSM} {
			if !seen[key{hook, backend}] {
				t.Errorf("nothing is said about %s at %s", backend, hook)
			}
		}
	}
}
