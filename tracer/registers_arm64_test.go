package tracer

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestRestartResult(t *testing.T) {
	for _, c := range []struct {
		what string
		call int64
		args [4]uint64
		want int64
	}{
		{"nanosleep", unix.SYS_NANOSLEEP, [4]uint64{}, eRestartBlock},
		{"clock_nanosleep for a time", unix.SYS_CLOCK_NANOSLEEP, [4]uint64{1, 0}, eRestartBlock},
		{"clock_nanosleep until a time", unix.SYS_CLOCK_NANOSLEEP, [4]uint64{1, 1}, eRestartNoHand},
		{"futex wait", unix.SYS_FUTEX, [4]uint64{8, 128, 0, 0}, eRestartSys},
		{"futex wait with a time-out", unix.SYS_FUTEX, [4]uint64{8, 128, 0, 8}, eRestartBlock},
		{"futex wait on a bit set with a time-out", unix.SYS_FUTEX, [4]uint64{8, 9 | 128 | 256, 0, 8}, eRestartBlock},
		{"futex lock", unix.SYS_FUTEX, [4]uint64{8, 6, 0, 8}, eRestartSys},
		{"ppoll", unix.SYS_PPOLL, [4]uint64{}, eRestartNoHand},
		{"read", unix.SYS_READ, [4]uint64{}, eRestartSys},
	} {
		r := registers{call: c.call}
		copy(r.Regs[:], c.args[:])
		if got := restartResult(&r); got != c.want {
			t.Errorf("%s: %d, not %d", c.what, got, c.want)
		}
	}
}

// What a thread that restores itself does next.
func TestUserRegs(t *testing.T) {
	r := registers{call: unix.SYS_READ, arg0: 7}
	r.Pc = 0x1004
	r.Regs[0] = negative(eRestartNoHand)
	if u := userRegs(r); u.Pc != 0x1000 || u.Regs[0] != 7 {
		t.Errorf("a call that restarts: pc %#x, x0 %d", u.Pc, u.Regs[0])
	}
	r.Regs[0] = negative(int64(unix.EBADF))
	if u := userRegs(r); u.Pc != 0x1004 || u.Regs[0] != negative(int64(unix.EBADF)) {
		t.Errorf("a call that failed: pc %#x, x0 %d", u.Pc, u.Regs[0])
	}
	r.call = -1
	r.Regs[0] = negative(eRestartNoHand)
	if u := userRegs(r); u.Pc != 0x1004 {
		t.Errorf("no call: pc %#x", u.Pc)
	}
}
