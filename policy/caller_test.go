package policy

import (
	"math"
	"testing"
)

func TestCallerMatch(t *testing.T) {
	pg := CallerInfo{Comm: "postgres", Exe: "/usr/lib/postgresql/17/bin/postgres", UID: 999, PID: 42}
	tests := []struct {
		name string
		c    Caller
		p    CallerInfo
		want bool
	}{
		{"empty", Caller{}, pg, true},
		{"empty, the kernel", Caller{}, CallerInfo{Kernel: true}, true},
		{"comm", Caller{Comm: []string{"postgres"}}, pg, true},
		{"comm, other", Caller{Comm: []string{"postgres"}}, CallerInfo{Comm: "postgresx"}, false},
		{"comm, second of a list", Caller{Comm: []string{"mysqld", "post*"}}, pg, true},
		{"comm with a slash", Caller{Comm: []string{"kworker*"}}, CallerInfo{Comm: "kworker/0:1"}, true},
		{"comm, ? for a slash", Caller{Comm: []string{"kworker?0*"}}, CallerInfo{Comm: "kworker/0:1"}, true},
		{"comm, class and alternatives", Caller{Comm: []string{"{a,b}[0-9]"}}, CallerInfo{Comm: "b7"}, true},
		{"comm, class with a slash in the name", Caller{Comm: []string{"a[!/b]c"}}, CallerInfo{Comm: "a/c"}, true},
		{"comm, empty name", Caller{Comm: []string{"*"}}, CallerInfo{}, true},
		{"exe", Caller{Exe: []string{"/usr/lib/postgresql/*/bin/postgres"}}, pg, true},
		{"exe, anywhere", Caller{Exe: []string{"/**/postgres"}}, pg, true},
		{"exe, other", Caller{Exe: []string{"/usr/bin/**"}}, pg, false},
		{"exe, unknown", Caller{Exe: []string{"/**/postgres"}}, CallerInfo{}, false},
		{"uid", Caller{UID: []Range{{1, 1}, {900, 999}}}, pg, true},
		{"uid, other", Caller{UID: []Range{{0, 998}, {1000, math.MaxUint32}}}, pg, false},
		{"uid 0, the kernel", Caller{UID: []Range{{0, 0}}}, CallerInfo{Kernel: true}, false},
		{"pid", Caller{PID: []Range{{42, 42}}}, pg, true},
		{"pid, other", Caller{PID: []Range{{1, 41}}}, pg, false},
		{"pid, the kernel", Caller{PID: []Range{{0, math.MaxUint32}}}, CallerInfo{Kernel: true}, false},
		{"all four", Caller{[]string{"p*"}, []string{"/usr/**"}, []Range{{999, 999}}, []Range{{42, 42}}}, pg, true},
		{"all but one", Caller{[]string{"p*"}, []string{"/usr/**"}, []Range{{999, 999}}, []Range{{43, 43}}}, pg, false},
	}
	for _, tt := range tests {
		if got := tt.c.Match(tt.p); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
		for _, need := range []struct {
			name       string
			says, want bool
		}{{"comm", tt.c.NeedsComm(), tt.c.Comm != nil}, {"exe", tt.c.NeedsExe(), tt.c.Exe != nil}, {"uid", tt.c.NeedsUID(), tt.c.UID != nil}, {"pid", tt.c.NeedsPID(), tt.c.PID != nil}} {
			if need.says != need.want {
				t.Errorf("%s: needs %s: %v", tt.name, need.name, need.says)
			}
		}
	}
}

func TestMatchRequest(t *testing.T) {
	r := func(from, to uint64) *Range { return &Range{from, to} }
	tests := []struct {
		name         string
		place, bytes *Range
		offset, size int64
		want         bool
	}{
		{"no filter", nil, nil, 0, 10, true},
		{"no filter, no place", nil, nil, -1, -1, true},
		{"first byte", r(0, 4095), nil, 0, 1, true},
		{"last byte", r(0, 4095), nil, 4095, 1, true},
		{"after it", r(0, 4095), nil, 4096, 1, false},
		{"before it", r(4096, 8191), nil, 0, 4096, false},
		{"into it", r(4096, 8191), nil, 0, 4097, true},
		{"around it", r(4096, 8191), nil, 0, 1 << 20, true},
		{"nothing", r(0, 4095), nil, 10, 0, false},
		{"no place", r(0, math.MaxUint64), nil, -1, 10, false},
		{"a place without a size", r(10, 20), nil, 20, -1, true},
		{"a place without a size, outside", r(10, 20), nil, 21, -1, false},
		{"the far end", r(math.MaxInt64, math.MaxUint64), nil, math.MaxInt64, math.MaxInt64, true},
		{"size", nil, r(512, 4096), 0, 512, true},
		{"size, too small", nil, r(512, 4096), 0, 511, false},
		{"size, too large", nil, r(512, 4096), 0, 4097, false},
		{"size 0", nil, r(0, 0), 0, 0, true},
		{"no size", nil, r(0, math.MaxUint64), 0, -1, false},
		{"both", r(0, 0), r(1, 1), 0, 1, true},
		{"one of both", r(0, 0), r(1, 1), 1, 1, false},
	}
	for _, tt := range tests {
		f := IOFault{Offset: tt.place, Size: tt.bytes}
		if got := f.MatchRequest(tt.offset, tt.size); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
