package policy

import (
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// to gives a pointer to a value of an attribute.
func to[T any](v T) *T { return &v }

// TestParseActions has every way to write an action, a filter and a trigger.
func TestParseActions(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	lat := func(l Latency) func(*Rule) { return func(r *Rule) { r.IO.Latency = &l } }
	short := func(s Short) func(*Rule) { return func(r *Rule) { r.IO.Short = &s } }
	corrupt := func(k CorruptKind, places, bytes uint32) func(*Rule) {
		return func(r *Rule) { r.IO.Corrupt = &Corrupt{k, places, bytes} }
	}
	torn := func(k TornKind, unit uint32) func(*Rule) {
		return func(r *Rule) { r.IO.Ops, r.IO.Torn = setOf(OpWrite), &Torn{k, unit} }
	}
	throttle := func(th Throttle) func(*Rule) { return func(r *Rule) { r.IO.Throttle = &th } }
	attr := func(a Attr) func(*Rule) { return func(r *Rule) { r.IO.Ops, r.IO.Attr = opsAttr, &a } }
	space := func(s Space, ops OpSet) func(*Rule) { return func(r *Rule) { r.IO.Ops, r.IO.Space = ops, &s } }
	eio := func(change func(*Rule)) func(*Rule) {
		return func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EIO, 1}}; change(r) }
	}
	uid := func(u ...Range) func(*Rule) { return eio(func(r *Rule) { r.IO.Caller.UID = u }) }
	offset := func(from, to uint64) func(*Rule) { return eio(func(r *Rule) { r.IO.Offset = &Range{from, to} }) }
	size := func(from, to uint64) func(*Rule) { return eio(func(r *Rule) { r.IO.Size = &Range{from, to} }) }
	day := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

	// Each is a rule over /d/**, with op=read unless its text has another or its action says it.
	tests := []struct {
		text string
		want func(*Rule)
	}{
		{"error=EIO:3,ENOSPC:1", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EIO, 3}, {syscall.ENOSPC, 1}} }},
		{"error=EIO,ENOSPC", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EIO, 1}, {syscall.ENOSPC, 1}} }},
		{"error=EIO:3,ENOSPC", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EIO, 3}, {syscall.ENOSPC, 1}} }},
		{"error=EIO:4294967295", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EIO, math.MaxUint32}} }},

		{"latency=20ms", lat(Latency{Base: 20 * ms})},
		{"latency=uniform(10ms,50ms)", lat(Latency{Kind: Uniform, Base: 10 * ms, Spread: 40 * ms})},
		{`latency="uniform( 10ms, 50ms )"`, lat(Latency{Kind: Uniform, Base: 10 * ms, Spread: 40 * ms})},
		{"latency=uniform(0,50ms) cap=40ms", lat(Latency{Kind: Uniform, Spread: 50 * ms, Cap: 40 * ms})},
		{"latency=normal(20ms,5ms)", lat(Latency{Kind: Normal, Base: 20 * ms, Spread: 5 * ms})},
		{"latency=normal(0s,5ms) cap=1s", lat(Latency{Kind: Normal, Spread: 5 * ms, Cap: s})},
		{"cap=1s latency=exp(20ms)", lat(Latency{Kind: Exp, Base: 20 * ms, Cap: s})},
		{"latency=pareto(10ms,1.5)", lat(Latency{Kind: Pareto, Base: 10 * ms, Shape: 1.5})},
		{"latency=pareto(10ms,1e-3) cap=1m", lat(Latency{Kind: Pareto, Base: 10 * ms, Shape: 0.001, Cap: time.Minute})},

		{"hang", func(r *Rule) { r.IO.Hang = true }},
		{"hang latency=1s throttle=1ops/s error=EIO", func(r *Rule) {
			r.IO.Hang, r.IO.Latency, r.IO.Throttle, r.IO.Errors = true, &Latency{Base: s}, &Throttle{OpsPerSec: 1}, []WeightedErrno{{syscall.EIO, 1}}
		}},
		{"lost op=write+fsync", func(r *Rule) { r.IO.Lost, r.IO.Ops = true, setOf(OpWrite, OpFsync) }},
		{"lost op=sync", func(r *Rule) { r.IO.Lost, r.IO.Ops = true, setOf(OpFsync, OpFdatasync, OpFsyncdir) }},
		{"lost op=all", func(r *Rule) { r.IO.Lost, r.IO.Ops = true, opsLost }},

		{"short=512", short(Short{Bytes: 512})},
		{"short=4KiB", short(Short{Bytes: 4096})},
		{"short=50%", short(Short{Share: 0.5})},
		{"short=7%", short(Short{Share: 0.07})},
		{"short=.5%", short(Short{Share: 0.005})},
		{"short=99.9%", short(Short{Share: 0.999})},
		{"short=random op=data", func(r *Rule) { r.IO.Short, r.IO.Ops = &Short{Random: true}, setOf(OpRead, OpWrite) }},

		{"corrupt=bitflip", corrupt(Bitflip, 1, 1)},
		{"corrupt=bitflip(4)", corrupt(Bitflip, 4, 1)},
		{"corrupt=zero(4,16)", corrupt(Zero, 4, 16)},
		{"corrupt=random(1000,1MiB)", corrupt(Random, 1000, 1<<20)},
		{"corrupt=zero op=data+meta", func(r *Rule) { r.IO.Corrupt, r.IO.Ops = &Corrupt{Zero, 1, 1}, opsCorrupt }},

		{"torn=prefix op=write", torn(Prefix, 512)},
		{"torn=prefix(4096) op=write", torn(Prefix, 4096)},
		{"torn=sectors op=write", torn(Sectors, 512)},
		{"torn=sectors(1) op=write", torn(Sectors, 1)},
		{"torn=sectors error=EIO op=data", func(r *Rule) {
			r.IO.Torn, r.IO.Errors, r.IO.Ops = &Torn{Sectors, 512}, []WeightedErrno{{syscall.EIO, 1}}, opsTorn
		}},

		{"nospace=1GiB", space(Space{Bytes: 1 << 30}, opsSpace)},
		{"nospace=0", space(Space{}, opsSpace)},
		{"quota=100MiB", space(Space{Bytes: 100 << 20, Quota: true}, opsSpace)},
		{"quota=1 op=write+statfs", space(Space{Bytes: 1, Quota: true}, setOf(OpWrite, OpStatfs))},
		{"nospace=0 op=all", space(Space{}, opsSpace)},
		{"nospace=0 comm=pg delay=1s active=1s idle=2s", func(r *Rule) {
			r.IO.Space, r.IO.Caller.Comm, r.IO.Ops = &Space{}, []string{"pg"}, opsSpace&^setOf(OpMmapWrite)
			r.Trigger.Delay, r.Trigger.Active, r.Trigger.Idle = s, s, 2*s
		}},

		{"throttle=10MiB/s", throttle(Throttle{BytesPerSec: 10 << 20})},
		{"throttle=200ops/s", throttle(Throttle{OpsPerSec: 200})},
		{"throttle=0.5ops/s", throttle(Throttle{OpsPerSec: 0.5})},
		{"throttle=10MiB/s,200ops/s", throttle(Throttle{BytesPerSec: 10 << 20, OpsPerSec: 200})},
		{"throttle=200ops/s,10MB/s", throttle(Throttle{BytesPerSec: 1e7, OpsPerSec: 200})},
		{"burst=1MiB,20ops throttle=10MiB/s,200ops/s", throttle(Throttle{10 << 20, 200, 1 << 20, 20})},
		{"throttle=10MiB/s burst=1MiB", throttle(Throttle{BytesPerSec: 10 << 20, BurstBytes: 1 << 20})},
		{"throttle=1e3ops/s burst=20ops", throttle(Throttle{OpsPerSec: 1000, BurstOps: 20})},
		{"throttle=1MiB/s op=data", func(r *Rule) { r.IO.Throttle, r.IO.Ops = &Throttle{BytesPerSec: 1 << 20}, OpsMoving }},
		{"throttle=1MiB/s,1ops/s op=data", func(r *Rule) {
			r.IO.Throttle, r.IO.Ops = &Throttle{BytesPerSec: 1 << 20, OpsPerSec: 1}, GroupData
		}},

		{"attr=size:0", attr(Attr{Size: to[uint64](0)})},
		{"attr=size:1GiB,perm:0600", attr(Attr{Size: to[uint64](1 << 30), Perm: to[uint32](0o600)})},
		{"attr=mtime:2020-01-01T00:00:00Z,atime:2020-01-01,ctime:@1577836800", attr(Attr{Mtime: &day, Atime: &day, Ctime: &day})},
		{"attr=mtime:2020-01-01T02:00:00.5+02:00", attr(Attr{Mtime: to(day.Add(s / 2))})},
		{"attr=mtime:@-1", attr(Attr{Mtime: to(time.Unix(-1, 0).UTC())})},
		{"attr=ino:7,blocks:8,nlink:9,uid:0,gid:4294967294", attr(Attr{
			Ino: to[uint64](7), Blocks: to[uint64](8), Nlink: to[uint32](9), UID: to[uint32](0), GID: to[uint32](math.MaxUint32 - 1),
		})},
		{"attr=perm:7777", attr(Attr{Perm: to[uint32](0o7777)})},
		{"attr=perm:0 op=getattr", func(r *Rule) { r.IO.Attr, r.IO.Ops = &Attr{Perm: to[uint32](0)}, setOf(OpGetattr) }},
		{"attr=nlink:0 op=meta", attr(Attr{Nlink: to[uint32](0)})},

		{"error=EIO comm=postgres", eio(func(r *Rule) { r.IO.Caller.Comm = []string{"postgres"} })},
		{`error=EIO comm=post*,"Web Content",{a,b}[0-9]`, eio(func(r *Rule) { r.IO.Caller.Comm = []string{"post*", "Web Content", "{a,b}[0-9]"} })},
		{"error=EIO comm=a\\,b,[!a]", eio(func(r *Rule) { r.IO.Caller.Comm = []string{`a\,b`, "[!/a]"} })},
		{"error=EIO comm=[^a]x", eio(func(r *Rule) { r.IO.Caller.Comm = []string{"[!/a]x"} })},
		{"error=EIO exe=/usr/bin/pg,/**/{a,b}", eio(func(r *Rule) { r.IO.Caller.Exe = []string{"/usr/bin/pg", "/**/{a,b}"} })},
		{"error=EIO uid=1000", uid(Range{1000, 1000})},
		{"error=EIO uid=0,1000-1999,2000-", uid(Range{0, 0}, Range{1000, 1999}, Range{2000, maxID})},
		{"error=EIO uid=4294967294", uid(Range{maxID, maxID})},
		{"error=EIO pid=1,7-9", eio(func(r *Rule) { r.IO.Caller.PID = []Range{{1, 1}, {7, 9}} })},
		{"error=EIO offset=0-4KiB", offset(0, 4095)},
		{"error=EIO offset=4096", offset(4096, 4096)},
		{"error=EIO offset=0", offset(0, 0)},
		{"error=EIO offset=1MiB-", offset(1<<20, math.MaxUint64)},
		{"error=EIO offset=1-2", offset(1, 1)},
		{"error=EIO offset=9223372036854775807-", offset(math.MaxInt64, math.MaxUint64)},
		{"error=EIO size=4KiB-", size(4096, math.MaxUint64)},
		{"error=EIO size=4KiB", size(4096, 4096)},
		{"error=EIO size=0-4KiB", size(0, 4096)},
		{"error=EIO size=1-9223372036854775807", size(1, math.MaxInt64)},
		{"error=EIO op=data offset=0-", eio(func(r *Rule) { r.IO.Ops, r.IO.Offset = OpsPlaced, &Range{0, math.MaxUint64} })},
		{"error=EIO op=data size=0-", eio(func(r *Rule) { r.IO.Ops, r.IO.Size = OpsSized, &Range{0, math.MaxUint64} })},
		{"error=EIO op=data uid=0", eio(func(r *Rule) { r.IO.Ops, r.IO.Caller.UID = GroupData&^setOf(OpMmapWrite), []Range{{0, 0}} })},

		{"error=EIO afterBytes=1GiB", eio(func(r *Rule) { r.Trigger.AfterBytes = 1 << 30 })},
		{"error=EIO op=write+fsync afterBytes=1", eio(func(r *Rule) { r.IO.Ops, r.Trigger.AfterBytes = setOf(OpWrite, OpFsync), 1 })},
		{"error=EIO delay=5m", eio(func(r *Rule) { r.Trigger.Delay = 5 * time.Minute })},
		{"error=EIO active=30s idle=1m", eio(func(r *Rule) { r.Trigger.Active, r.Trigger.Idle = 30*s, time.Minute })},
		{"error=EIO idle=20m active=1ns", eio(func(r *Rule) { r.Trigger.Active, r.Trigger.Idle = 1, 20*time.Minute })},
	}
	for _, tt := range tests {
		text := "io path=/d/** " + tt.text
		want := Rule{Name: "r", Text: text, IO: &IOFault{Path: "/d/**", Ops: setOf(OpRead)}, Trigger: Trigger{P: 1, TTL: DefaultTTL}}
		tt.want(&want)
		if want.IO.Space == nil && want.IO.Attr == nil && !strings.Contains(text, " op=") {
			text += " op=read"
			want.Text = text
		}
		got, err := ParseRule("r", text, Defaults{})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", text, diff)
			continue
		}
		checkRoundTrip(t, got)
	}
}

// TestParseSizes has every unit of a size.
func TestParseSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "512": 512, "512B": 512, "1k": 1 << 10, "1K": 1 << 10, "1Ki": 1 << 10, "1KiB": 1 << 10, "1kB": 1000, "1KB": 1000,
		"1M": 1 << 20, "1Mi": 1 << 20, "1MiB": 1 << 20, "1MB": 1e6, "1G": 1 << 30, "1Gi": 1 << 30, "1GiB": 1 << 30, "1GB": 1e9,
		"1T": 1 << 40, "1Ti": 1 << 40, "1TiB": 1 << 40, "1TB": 1e12, "1.5KiB": 1536, "0.5MiB": 1 << 19, "0.001MB": 1000, "007": 7,
		"9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
	} {
		r, err := ParseRule("r", "io short="+text+" op=read path=/d", Defaults{})
		if err != nil || r.IO.Short.Bytes != want {
			t.Errorf("short=%s: %v, %v, want %d bytes", text, r, err, want)
			continue
		}
		checkRoundTrip(t, r)
	}
}

// TestParseActionErrors shows F11 for actions, filters and triggers.
func TestParseActionErrors(t *testing.T) {
	tests := []struct{ text, message, fix string }{
		{"io error=EIO:^0 op=read path=/d", "the weight 0 makes no sense", "the least is 1"},
		{"io error=EIO:^x", `the weight "x" is not a whole number`, ""},
		{"io error=EIO:^", `the weight "" is not a whole number`, ""},
		{"io error=EIO:^75%", `the weight "75%" is not a whole number`, "digits only"},
		{"io error=EIO:^4294967296", "the weight 4294967296 is too large", "the largest is 4294967295"},
		{"io error=EIO,^EIO", "the errno EIO is given twice", "leave one of them out"},
		{"io error=EAGAIN:1,^EWOULDBLOCK:2", "the errno EAGAIN is given twice", "add their weights up"},
		{"io error=EIO,^", "an errno is missing", ""},
		{"io error=^:3", "an errno is missing", ""},
		{"io error=EIO^+ENOSPC", "+ between two errors", "commas"},
		{"io error=EIO:1,^ENOSYS:1", "ENOSYS would switch the operation off", ""},
		{"io error=EIO,^ENOSPCC", `unknown errno "ENOSPCC"`, "did you mean ENOSPC?"},

		{"io latency=^uniform op=read path=/d", "uniform takes two values", "uniform(10ms,50ms)"},
		{"io latency=^uniform(10ms)", "uniform takes two values", ""},
		{"io latency=^exp(10ms,20ms)", "exp takes one value", ""},
		{"io latency=^normal(1ms,2ms,3ms)", "normal takes two values", ""},
		{"io latency=^unifrom(1ms,2ms)", `unknown distribution "unifrom"`, "did you mean uniform?"},
		{"io latency=^fixed(1ms)", `unknown distribution "fixed"`, "a time alone"},
		{"io latency=^10ms,50ms", "latency=10ms,50ms is not a duration", "write uniform(10ms,50ms)"},
		{"io latency=uniform^(10ms,50ms", "( without )", ""},
		{"io latency=uniform^(10ms, 50ms)", "( without )", "leave blanks out"},
		{"io latency=exp(10ms)^x", `"x" after )`, ""},
		{"io latency=uniform(10ms,^)", "a value is missing", "uniform(10ms,50ms)"},
		{"io latency=uniform(^50ms,10ms)", "uniform(50ms,10ms) has nothing to draw from", "the shorter time first"},
		{"io latency=uniform(^10ms,10ms)", "has nothing to draw from", ""},
		{"io latency=uniform(^-1ms,10ms)", "uniform=-1ms is negative", ""},
		{"io latency=uniform(1ms,^10)", "uniform=10 has no unit", "did you mean 10s?"},
		{"io latency=normal(20ms,^0s)", "normal=0s makes no sense", ""},
		{"io latency=exp(^0s)", "exp=0s makes no sense", ""},
		{"io latency=pareto(10ms,^0)", "the tail index 0 makes no sense", ""},
		{"io latency=pareto(10ms,^-1)", `the tail index "-1" is not a number`, ""},
		{"io latency=pareto(10ms,^1e999)", "the tail index 1e999 is too large", ""},
		{"io latency=pareto(10ms,^x)", `the tail index "x" is not a number`, ""},
		{"io latency=^uniform(1ms,2m) ttl=1m op=read path=/d", "a latency of 2m0s is longer than the rule lives (ttl 1m0s)", ""},
		{"io latency=^exp(2m) ttl=1m op=read path=/d", "a mean latency of 2m0s is longer", ""},
		{"io latency=^pareto(2m,2) ttl=1m op=read path=/d", "a latency of 2m0s is longer", ""},
		{"io ^cap=1s op=read path=/d", "cap without latency", ""},
		{"io error=EIO ^cap=1s op=read path=/d", "cap without latency", ""},
		{"io latency=1s ^cap=2s op=read path=/d", "cap means nothing for a latency that is fixed", ""},
		{"io latency=uniform(1s,3s) cap=^1s op=read path=/d", "cap=1s is not above the shortest latency, 1s", ""},
		{"io latency=uniform(1s,3s) cap=^3s op=read path=/d", "cap=3s is not below the longest latency, 3s", ""},
		{"io latency=pareto(1s,3) cap=^500ms op=read path=/d", "cap=500ms is not above the shortest latency", ""},
		{"io latency=exp(1s) cap=^2m ttl=1m op=read path=/d", "a cap of 2m0s is longer than the rule lives", ""},
		{"io latency=exp(1s) cap=^0s op=read path=/d", "cap=0s makes no sense", ""},

		{"io hang=^5s op=read path=/d", "hang takes no value", "for a wait of a known length use latency=5s"},
		{"io hang ^hang", `field "hang" is given twice`, ""},
		{"io lost=^true op=write path=/d", "lost takes no value", "write the word alone"},

		{"io short=^0 op=read path=/d", "a size of 0 makes no sense here", "the least is 1"},
		{"io short=^0%", "short=0% makes no sense", "above 0%"},
		{"io short=^100%", "short=100% makes no sense", "below 100%"},
		{"io short=^1e1%", "short=1e1% is not a share", ""},
		{"io short=^0.5", "short=0.5 is not a whole number of bytes", "a share with %"},
		{"io short=^radnom", "short=radnom is not a size or share", "did you mean random?"},
		{"io short=^-5", "short=-5 is not a size or share", ""},
		{"io short=5^kb", `"kb" is not a unit of size`, bitsFix},
		{"io short=5^Mbit", `"Mbit" is not a unit of size`, bitsFix},
		{"io short=5^m", `"m" is not a unit of size`, "did you mean MiB?"},
		{"io short=5^mib", `"mib" is not a unit of size`, "did you mean MiB?"},
		{"io short=5^b", `"b" is not a unit of size`, "did you mean B?"},
		{"io short=5^MiB/s", `"MiB/s" is not a unit of size`, "this is a size, not a rate"},
		{"io short=5^PiB", `"PiB" is not a unit of size`, ""},
		{"io short=5^pages", `"pages" is not a unit of size`, "for instance 4KiB"},
		{"io short=^0.3KiB", "0.3KiB is not a whole number of bytes", ""},
		{"io short=^9223372036854775808", "the size 9223372036854775808 is too large", ""},
		{"io short=^8388608TiB", "the size 8388608TiB is too large", ""},
		{"io short=^1.2.3KiB", `"1.2.3KiB" is not a size`, ""},
		{"io short=512 op=read+^fsync path=/d", "short means nothing for fsync", "it is for read and write"},
		{"io short=512 op=^sync path=/d", "short means nothing for sync", "it is for read and write"},
		{"io short=512 op=^mmap-read path=/d", "short means nothing for mmap-read", ""},

		{"io corrupt=^flip op=read path=/d", `unknown corruption "flip"`, "write bitflip, zero or random"},
		{"io corrupt=^zeros", `unknown corruption "zeros"`, "did you mean zero?"},
		{"io corrupt=zero(1,2,^3)", "zero takes at most two values", ""},
		{"io corrupt=zero(^0)", "the number of places 0 makes no sense", ""},
		{"io corrupt=zero(^1001)", "the number of places 1001 is too large", "the largest is 1000"},
		{"io corrupt=zero(1,^0)", "a size of 0 makes no sense here", ""},
		{"io corrupt=zero(1,^2MiB)", "the size 2MiB is too large", "the largest is 1MiB"},
		{"io corrupt=zero(^)", "a value is missing in \"zero()\"", "zero(4,16)"},
		{"io corrupt=zero op=^getattr path=/d", "corrupt means nothing for getattr", "readlink, read, write, mmap-read and mmap-write"},
		{"io torn=^half op=write path=/d", `unknown kind of torn write "half"`, ""},
		{"io torn=prefix(1,^2) op=write path=/d", "prefix takes one value", ""},
		{"io torn=prefix(^2GiB) op=write path=/d", "the size 2GiB is too large", ""},
		{"io torn=prefix op=^read path=/d", "torn means nothing for read", "it is for write and mmap-write"},
		{"io lost op=^read path=/d", "lost means nothing for read", ""},
		{"io lost op=^flush path=/d", "lost means nothing for flush", ""},
		{"io nospace=^-1 path=/d", "the size -1 is negative", ""},
		{"io ^nospace= path=/d", "field \"nospace\" has no value", ""},
		{"io nospace=0 op=^read path=/d", "nospace means nothing for read", ""},
		{"io quota=0 op=^unlink path=/d", "quota means nothing for unlink", ""},
		{"io nospace=0 ^afterBytes=3 path=/d", "afterBytes cannot stand with what counts bytes itself", "add those bytes to nospace or quota"},

		{"io throttle=^10MiB op=read path=/d", "throttle=10MiB has no /s", ""},
		{"io throttle=10MiB^/min op=read path=/d", "a rate is per second", ""},
		{"io throttle=^200iops op=read path=/d", "throttle=200iops is not a rate", "did you mean 200ops/s?"},
		{"io throttle=^8Mbps op=read path=/d", "throttle=8Mbps is not a rate", "1MB/s"},
		{"io throttle=1^Mbit/s op=read path=/d", `"Mbit" is not a unit of size`, bitsFix},
		{"io throttle=^0/s op=read path=/d", "a size of 0 makes no sense here", ""},
		{"io throttle=^0ops/s op=read path=/d", "the number of operations 0 makes no sense", ""},
		{"io throttle=^1e10ops/s op=read path=/d", "the number of operations 1e10 is too large", ""},
		{"io throttle=1MiB/s,^2MiB/s op=read path=/d", "two rates of one kind", ""},
		{"io ^burst=1MiB op=read path=/d", "burst without throttle", ""},
		{"io error=EIO ^burst=1MiB op=read path=/d", "burst without throttle", ""},
		{"io throttle=1ops/s burst=^1MiB op=read path=/d", "a burst of bytes, but throttle has no rate of bytes", ""},
		{"io throttle=1MiB/s burst=^1ops op=read path=/d", "a burst of operations, but throttle has no rate of operations", ""},
		{"io throttle=1ops/s burst=^0.5ops op=read path=/d", "a burst of 0.5ops lets nothing pass", ""},
		{"io throttle=1ops/s burst=1ops,^2ops op=read path=/d", "two bursts of one kind", ""},
		{"io throttle=1MiB/s op=^fsync path=/d", "throttle means nothing for fsync", "throttle=200ops/s"},
		{"io throttle=^1MiB/s,1ops/s op=fsync+lseek path=/d", "a rate of bytes means nothing for fsync and lseek", ""},

		{"io attr=^size path=/d", `"size" has no colon`, ""},
		{"io attr=size:0,^size:1 path=/d", "the attribute size is given twice", ""},
		{"io attr=^mode:0600 path=/d", `unknown attribute "mode"`, "did you mean perm?"},
		{"io attr=^szie:0 path=/d", `unknown attribute "szie"`, "did you mean size?"},
		{"io attr=^dev:1 path=/d", "the attribute dev cannot be overridden: it is that of the layer's mount", ""},
		{"io attr=^size: path=/d", "the attribute size has no value", ""},
		{"io attr=perm:^0800 path=/d", `"0800" are not permissions`, "an octal number"},
		{"io attr=perm:^10000 path=/d", `"10000" are not permissions`, ""},
		{"io attr=perm:^rwx path=/d", `"rwx" are not permissions`, ""},
		{"io attr=size:0,^kind:symlink path=/d", "the attribute kind cannot be overridden: an object whose kind changes is a broken one for the kernel, and every call on it fails", "leave it out"},
		{"io attr=^rdev:8:1 path=/d", "the attribute rdev cannot be overridden", "leave it out"},
		{"io attr=mtime:^yesterday path=/d", `"yesterday" is not a time`, "2020-01-01T00:00:00Z"},
		{"io attr=mtime:^2020-13-01 path=/d", "is not a time", ""},
		{"io attr=mtime:^@x path=/d", `"@x" is not a number of seconds`, ""},
		{"io attr=mtime:^@999999999999999 path=/d", "is not a number of seconds from year 0 to 9999", ""},
		{"io attr=uid:^4294967295 path=/d", "the uid 4294967295 is too large", ""},
		{"io attr=ino:^0 path=/d", "the inode number 0 makes no sense", ""},
		{"io attr=nlink:^-1 path=/d", `the number of links "-1" is not a whole number`, ""},
		{"io attr=size:0 op=^read path=/d", "attr means nothing for read", "it is for getattr"},
		{"io attr=size:0 op=^data path=/d", "attr means nothing for data", ""},
		{"io attr=size:0 ^offset=0-4KiB path=/d", "attr and offset cannot stand together", ""},

		{"io error=EIO op=read path=/d comm=^/usr/bin/pg", "comm=/usr/bin/pg is a path", "use exe"},
		{"io error=EIO op=read path=/d comm=a^/b", "a slash in the name of a thread", ""},
		{"io error=EIO op=read path=/d comm=pg,^", "a name is missing in comm", ""},
		{"io error=EIO op=read path=/d comm=^postgres-checkpointer", "the name of a thread has at most 15 bytes", "comm=postgres-checkp*"},
		{"io error=EIO op=read path=/d comm=a^[b", "[ without ]", ""},
		{"io error=EIO op=read path=/d comm=^**", "comm=** means no more than *", ""},
		{"io error=EIO op=read path=/d comm=^a**", `"a**" is not a glob for the name of a thread`, ""},
		{"io error=EIO op=read path=/d comm=^..", `".." is not a glob for the name of a thread`, ""},
		{"io error=EIO op=read path=/d comm=^{a,b}{a,b}{a,b}{a,b}{a,b}", "the {} stand for more than 16 paths", ""},
		{"io error=EIO op=read path=/d comm=" + strings.Repeat("a,", listSize) + "^b", "comm lists more than 16 globs", ""},
		{"io error=EIO op=read path=/d exe=^postgres", "the path of the program is not absolute", "exe=/**/postgres"},
		{"io error=EIO op=read path=/d exe=/a,^usr/b", "the path is not absolute", ""},
		{"io error=EIO op=read path=/d exe=/a^/", "the path ends in a slash", ""},
		{"io error=EIO op=read path=/d uid=^postgres", "uid=postgres is not a number", "id -u NAME"},
		{"io error=EIO op=read path=/d uid=^4294967295", "the uid 4294967295 is too large", ""},
		{"io error=EIO op=read path=/d uid=^10-5", "the range 10-5 is backwards", ""},
		{"io error=EIO op=read path=/d uid=^-5", "the range \"-5\" has no start", "such as 0-5"},
		{"io error=EIO op=read path=/d uid=1,^", "is not a whole number", ""},
		{"io error=EIO op=read path=/d uid=1-^2-3", "the uid \"2-3\" is not a whole number", ""},
		{"io error=EIO op=read path=/d uid=" + strings.Repeat("1,", listSize) + "^2", "uid lists more than 16 numbers", ""},
		{"io error=EIO op=read path=/d pid=^0", "the pid 0 makes no sense", ""},
		{"io error=EIO op=read path=/d pid=^pg", "pid=pg is not a number", "use comm or exe"},
		{"io error=EIO op=read path=/d offset=^4KiB-4KiB", "the range 4KiB-4KiB is empty", "write 4KiB- or a larger end"},
		{"io error=EIO op=read path=/d offset=^8KiB-4KiB", "the range 8KiB-4KiB is backwards", ""},
		{"io error=EIO op=read path=/d offset=0-4^kb", `"kb" is not a unit of size`, ""},
		{"io error=EIO op=read path=/d size=^x", `"x" is not a size`, ""},
		{"io error=EIO op=^fsync path=/d offset=0-4KiB", "offset means nothing for fsync", ""},
		{"io error=EIO op=^lseek path=/d size=0-4KiB", "size means nothing for lseek", ""},
		{"io error=EIO op=^sync path=/d size=0-4KiB", "size means nothing for sync", ""},
		{"io latency=1s op=^release path=/d comm=pg", "comm means nothing for release: the kernel sends it without saying for which process", ""},
		{"io latency=1s op=^mmap-write path=/d uid=0", "uid means nothing for mmap-write: it is the kernel that writes memory maps back", ""},

		{"io error=EIO op=fsync path=/d ^afterBytes=1MiB", "afterBytes counts the bytes of reads and writes: the rule has neither", "or use after"},
		{"io error=EIO op=read path=/d afterBytes=^0", "a size of 0 makes no sense here", ""},
		{"io error=EIO op=read path=/d afterBytes=^9223372036854775807", "more than any file has", ""},
		{"io error=EIO op=read path=/d delay=^10m", "a delay of 10m0s is not shorter than the rule lives (ttl 10m0s)", "a longer ttl"},
		{"io error=EIO op=read path=/d delay=^0s", "delay=0s makes no sense", ""},
		{"io error=EIO op=read path=/d ^active=1s", "active without idle", ""},
		{"io error=EIO op=read path=/d ^idle=1s", "idle without active", ""},
		{"io error=EIO op=read path=/d active=1s idle=^0s", "idle=0s makes no sense", ""},
		{"io ^delay=100ms op=read path=/d", "the rule does nothing: delay is not an action", "did you mean latency=100ms?"},

		{"io ^errno=5", `unknown field "errno"`, "did you mean error?"},
		{"io ^percent=5", `unknown field "percent"`, "did you mean p?"},
		{"io ^duration=5m", `unknown field "duration"`, "did you mean ttl?"},
		{"io ^afterbytes=5", `unknown field "afterbytes"`, "did you mean afterBytes?"},
		{"io ^EIO op=read", `"EIO" is not a field`, "did you mean error=EIO?"},
		{"io ^write error=EIO", `"write" is not a field`, "did you mean op=write?"},
		{"io latency=5ms ^50ms)", `"50ms)" is not a field`, "leave out the blanks between ( and )"},
	}
	for _, tt := range tests {
		checkRefused(t, tt.text, tt.message, tt.fix)
	}
}
