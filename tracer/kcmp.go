package tracer

import (
	"golang.org/x/sys/unix"
)

// Types of kcmp(2).
const (
	kcmpFile  = 0
	kcmpVM    = 1
	kcmpFiles = 2
	kcmpFS    = 3
)

// kcmp compares what two tasks hold in the kernel: 0 the same, 1 less, 2
// greater in an order that is stable until reboot, -1 unknown (a task is gone).
func kcmp(tid1, tid2, typ, fd1, fd2 int) int {
	r, _, e := unix.RawSyscall6(unix.SYS_KCMP, uintptr(tid1), uintptr(tid2), uintptr(typ), uintptr(fd1), uintptr(fd2), 0)
	if e != 0 {
		return -1
	}
	return int(r)
}

// kcmpSet finds equal members by the order that kcmp gives: with n different
// ones a look-up costs log n calls.
type kcmpSet[T any] struct {
	sorted []T
}

// find returns the member for which compare, of the new one with it, gives 0.
// Else it adds what make returns. compare gives the result of kcmp.
func (s *kcmpSet[T]) find(compare func(T) int, create func() T) (t T, isNew bool) {
	lo, hi := 0, len(s.sorted)
	for lo < hi {
		mid := (lo + hi) / 2
		switch compare(s.sorted[mid]) {
		case 0:
			return s.sorted[mid], false
		case 1:
			hi = mid
		default: // greater; an unknown one is a task that is gone and equal to none
			lo = mid + 1
		}
	}
	t = create()
	s.sorted = append(s.sorted, t)
	copy(s.sorted[lo+1:], s.sorted[lo:])
	s.sorted[lo] = t
	return t, true
}
