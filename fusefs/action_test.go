package fusefs_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// opsOf is the set that a rule writes as text.
func opsOf(t testing.TB, text string) policy.OpSet {
	t.Helper()
	var s policy.OpSet
	must(t, s.UnmarshalText([]byte(text)))
	return s
}

// fault makes a rule of what it does; it fires always, for a minute, with seed 7.
func fault(t testing.TB, ops string, f policy.IOFault) policy.Rule {
	t.Helper()
	if f.Path == "" {
		f.Path = "/data/**"
	}
	f.Ops = opsOf(t, ops)
	return policy.Rule{Name: "r0", IO: &f, Trigger: policy.Trigger{P: 1, TTL: time.Minute, Seed: 7, Seeded: true}}
}

// faults sets rules.
func (b *bench) faults(rules ...policy.Rule) {
	b.Helper()
	must(b, b.SetRules(rules, time.Now()))
}

// one is the single event since the last call.
func (b *bench) one() fusefs.Event {
	b.Helper()
	e := b.recorded()
	if len(e) != 1 {
		b.Fatalf("%d events: %+v", len(e), e)
	}
	return e[0]
}

func eio() []policy.WeightedErrno { return []policy.WeightedErrno{{Errno: unix.EIO, Weight: 1}} }

func TestWeightedErrors(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	r := fault(t, "read", policy.IOFault{Errors: []policy.WeightedErrno{{Errno: unix.EIO, Weight: 3}, {Errno: unix.ESTALE, Weight: 1}}})
	draw := func() (seen []error) {
		b.faults()
		b.faults(r)
		for range 400 {
			_, err := unix.Pread(fd, make([]byte, 1), 0)
			seen = append(seen, err)
		}
		return seen
	}
	first := draw()
	n := 0
	for i, e := range b.recorded() {
		if e.Errno != first[i] || e.Action != fusefs.ActionError {
			t.Fatalf("event %+v, the program saw %v", e, first[i])
		}
		if e.Errno == unix.EIO {
			n++
		}
	}
	if n < 274 || n > 326 { // 3 sigma of 300
		t.Errorf("%d of 400 are EIO, 3 in 4 should be", n)
	}
	if !slices.Equal(first, draw()) {
		t.Error("the same seed draws other errors")
	}
}

// A short read or write transfers less than was asked for, and says so.
func TestShort(t *testing.T) {
	b := over(t, setup{direct: true})
	content := strings.Repeat("0123456789abcdef", 1<<12)
	b.write("f", content)
	fd := b.open("f", unix.O_RDWR)
	buf := make([]byte, 1000)
	for _, c := range []struct {
		short policy.Short
		want  int // 0: any that is shorter
	}{{policy.Short{Bytes: 10}, 10}, {policy.Short{Share: 0.5}, 500}, {policy.Short{Share: 0.0001}, 1}, {policy.Short{Random: true}, 0}} {
		b.faults(fault(t, "read", policy.IOFault{Short: &c.short}))
		n, err := unix.Pread(fd, buf, 16)
		must(t, err)
		if n < 1 || n >= len(buf) || c.want != 0 && n != c.want || string(buf[:n]) != content[16:16+n] {
			t.Errorf("%+v: read %d bytes %q", c.short, n, buf[:n])
		}
		if e := b.one(); e.Action != fusefs.ActionShort || e.Bytes != int64(n) || e.Size != 1000 || e.Errno != 0 {
			t.Errorf("event %+v", e)
		}
		b.faults(fault(t, "write", policy.IOFault{Short: &c.short}))
		n, err = unix.Pwrite(fd, bytes.Repeat([]byte("X"), 1000), 0)
		must(t, err)
		got, err := os.ReadFile(b.under("f"))
		must(t, err)
		if n < 1 || n >= 1000 || c.want != 0 && n != c.want || string(got[:n]) != strings.Repeat("X", n) || string(got[n:]) != content[n:] {
			t.Errorf("%+v: wrote %d bytes", c.short, n)
		}
		if e := b.one(); e.Bytes != int64(n) || e.Op != policy.OpWrite {
			t.Errorf("event %+v", e)
		}
		b.write("f", content)
	}
	// What cannot be shortened is not matched: one byte, no more than may pass, and pages of maps, which the kernel would fill up with zeros.
	b.faults(fault(t, "read", policy.IOFault{Short: &policy.Short{Bytes: 100}}))
	for _, n := range []int{1, 100} {
		if got, err := unix.Pread(fd, make([]byte, n), 0); err != nil || got != n {
			t.Errorf("read of %d: %d %v", n, got, err)
		}
	}
	mem, err := unix.Mmap(fd, 0, len(content), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }()
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer func() { _, _ = unix.Close(pipe[0]), unix.Close(pipe[1]) }()
	_, err = unix.Write(pipe[1], mem[4096:4096+2000])
	must(t, err)
	got := make([]byte, 2000)
	if n, err := unix.Read(pipe[0], got); err != nil || string(got[:n]) != content[4096:4096+2000] {
		t.Errorf("a page was filled short: %q", got)
	}
	if s := b.Rules()[0]; s.Matched != 0 {
		t.Errorf("%d operations matched", s.Matched)
	}
}

// Corruption changes so many places of at most so many bytes, as the event says; the same seed gives the same bytes.
func TestCorrupt(t *testing.T) {
	b := over(t, setup{direct: true})
	content := bytes.Repeat([]byte("0123456789abcdef"), 512)
	b.write("f", string(content))
	fd := b.open("f", unix.O_RDWR)
	for _, kind := range []policy.CorruptKind{policy.Bitflip, policy.Zero, policy.Random} {
		rule := fault(t, "read", policy.IOFault{Corrupt: &policy.Corrupt{Kind: kind, Places: 5, Bytes: 8}})
		read := func() []byte {
			b.faults()
			b.faults(rule)
			got := make([]byte, 4096)
			n, err := unix.Pread(fd, got, 1024)
			must(t, err)
			if n != 4096 {
				t.Fatalf("read %d bytes", n)
			}
			return got
		}
		got := read()
		e := b.one()
		if len(e.Places) != 5 || e.Action != fusefs.ActionCorrupt {
			t.Fatalf("event %+v", e)
		}
		checkSpoilt(t, kind, content[1024:1024+4096], got, 1024, e.Places, 8)
		if !bytes.Equal(got, read()) {
			t.Error("the same seed spoils other bytes")
		}
		b.recorded()
	}
	if got := content; content == nil || !bytes.Equal(got, []byte(contentOf(t, b.under("f")))) {
		t.Error("a corrupted read changed the file")
	}

	same := 0
	for seed := range uint64(40) {
		rule := fault(t, "read", policy.IOFault{Corrupt: &policy.Corrupt{Kind: policy.Random, Places: 16, Bytes: 64}})
		rule.Trigger.Seed = seed
		b.faults(rule)
		got := make([]byte, 4096)
		_, err := unix.Pread(fd, got, 0)
		must(t, err)
		for _, p := range b.one().Places {
			for i := p.Offset; i < p.Offset+p.Size; i++ {
				if got[i] == content[i] {
					same++
				}
			}
		}
	}
	if same > 0 {
		t.Errorf("%d random bytes are what they were", same)
	}

	mine := bytes.Repeat([]byte("abcdefgh"), 1024)
	sent := slices.Clone(mine)
	b.faults(fault(t, "write", policy.IOFault{Corrupt: &policy.Corrupt{Kind: policy.Random, Places: 3, Bytes: 4}}))
	n, err := unix.Pwrite(fd, sent, 0)
	must(t, err)
	if n != len(mine) || !bytes.Equal(sent, mine) {
		t.Error("the caller's buffer was changed")
	}
	checkSpoilt(t, policy.Random, mine, []byte(contentOf(t, b.under("f"))), 0, b.one().Places, 4)

	must(t, os.Symlink("some/where/else", b.under("link")))
	b.faults(fault(t, "readlink", policy.IOFault{Corrupt: &policy.Corrupt{Places: 2, Bytes: 1}}))
	to, err := os.Readlink(b.path("link"))
	must(t, err)
	checkSpoilt(t, policy.Bitflip, []byte("some/where/else"), []byte(to), 0, b.one().Places, 1)
	b.faults()
	if to, err := os.Readlink(b.path("link")); err != nil || to != "some/where/else" {
		t.Error("the link itself was changed", to, err)
	}

	// pages, both ways
	b.write("g", string(content))
	fd = b.open("g", unix.O_RDWR)
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }()
	b.faults(fault(t, "mmap-read", policy.IOFault{Corrupt: &policy.Corrupt{Places: 1, Bytes: 1}}))
	must(t, faultIn(mem[:1]))
	e := b.recorded()
	if len(e) != 1 || len(e[0].Places) != 1 || e[0].Op != policy.OpMmapRead {
		t.Fatalf("events %+v", e)
	}
	if at := e[0].Places[0].Offset; at < 4096 {
		if got := mem[at]; got == content[at] {
			t.Error("the page is as the file")
		}
	}
	b.faults(fault(t, "mmap-write", policy.IOFault{Corrupt: &policy.Corrupt{Kind: policy.Zero, Places: 1, Bytes: 1}}))
	must(t, poke(mem, 'X'))
	must(t, unix.Msync(mem, unix.MS_SYNC))
	ev := b.one()
	if got := contentOf(t, b.under("g")); got[ev.Places[0].Offset] != 0 {
		t.Errorf("event %+v: the file has %q there", ev, got[ev.Places[0].Offset])
	}
}

func contentOf(t testing.TB, path string) string {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	return string(got)
}

// checkSpoilt compares what came with what was, which must differ at the places and nowhere else.
func checkSpoilt(t *testing.T, kind policy.CorruptKind, was, got []byte, at int64, places []fusefs.Place, longest int64) {
	t.Helper()
	if len(was) != len(got) {
		t.Fatalf("%d bytes became %d", len(was), len(got))
	}
	in := make([]bool, len(was))
	for _, p := range places {
		if p.Size < 1 || p.Size > longest {
			t.Errorf("place %+v is longer than %d", p, longest)
		}
		for i := p.Offset - at; i < p.Offset-at+p.Size; i++ {
			if in[i] {
				t.Errorf("place %+v overlaps another", p)
			}
			in[i] = true
		}
	}
	for i := range was {
		flipped := was[i] ^ got[i]
		ok := flipped == 0
		if in[i] {
			switch kind {
			case policy.Zero:
				ok = got[i] == 0
			case policy.Bitflip:
				ok = flipped != 0 && flipped&(flipped-1) == 0
			default:
				ok = flipped != 0
			}
		}
		if !ok {
			t.Errorf("byte %d is %#x, was %#x, in a place: %v", i, got[i], was[i], in[i])
		}
	}
}

// A torn write leaves whole units of what was written, never all; the program is told that all was.
func TestTorn(t *testing.T) {
	b := over(t, setup{direct: true})
	const unit = 512
	old, data := bytes.Repeat([]byte("o"), 8*unit), bytes.Repeat([]byte("N"), 4*unit+100)
	seen := map[string]bool{}
	for _, kind := range []policy.TornKind{policy.Prefix, policy.Sectors} {
		for seed := range uint64(24) {
			b.write("f", string(old))
			fd := b.open("f", unix.O_RDWR)
			r := fault(t, "write", policy.IOFault{Torn: &policy.Torn{Kind: kind, Unit: unit}})
			r.Trigger.Seed = seed
			b.faults(r)
			const at = 700 // in the second unit: the write touches six of them, 1 to 5
			n, err := unix.Pwrite(fd, data, at)
			must(t, err)
			must(t, unix.Close(fd))
			if n != len(data) {
				t.Errorf("the program was told of %d bytes", n)
			}
			got, e := contentOf(t, b.under("f")), b.one()
			var reached int64
			in := make([]bool, len(old))
			for _, p := range e.Places {
				reached += p.Size
				for i := p.Offset; i < p.Offset+p.Size; i++ {
					in[i] = true
				}
				if start, end := p.Offset, p.Offset+p.Size; start != at && start%unit != 0 || end != at+int64(len(data)) && end%unit != 0 {
					t.Errorf("part %+v is not of whole units", p)
				}
			}
			if reached != e.Bytes || reached >= int64(len(data)) {
				t.Errorf("event %+v", e)
			}
			for i := range old {
				if (got[i] == 'N') != in[i] {
					t.Fatalf("byte %d is %c, event %+v", i, got[i], e)
				}
			}
			if kind == policy.Prefix && len(e.Places) > 0 && (len(e.Places) > 1 || e.Places[0].Offset != at) {
				t.Errorf("no prefix: %+v", e.Places)
			}
			seen[fmt.Sprint(kind, e.Places)] = true
		}
	}
	if len(seen) < 12 {
		t.Errorf("48 seeds tear in %d ways only", len(seen))
	}
	// with an error; in a file that grows; at the end of one that is appended to
	r := fault(t, "write", policy.IOFault{Torn: &policy.Torn{Kind: policy.Sectors, Unit: unit}, Errors: eio()})
	b.faults(r)
	b.write("grows", "")
	fd := b.open("grows", unix.O_RDWR)
	if n, err := unix.Write(fd, data); err != unix.EIO {
		t.Errorf("wrote %d, %v", n, err)
	}
	e := b.one()
	end := int64(0)
	for _, p := range e.Places {
		end = p.Offset + p.Size
	}
	if fi, err := os.Stat(b.path("grows")); err != nil || fi.Size() != end || e.Errno != unix.EIO {
		t.Errorf("the file has %d bytes, event %+v", fi.Size(), e)
	}
	b.write("log", strings.Repeat("o", unit+10))
	fd = b.open("log", unix.O_WRONLY|unix.O_APPEND)
	r = fault(t, "write", policy.IOFault{Torn: &policy.Torn{Kind: policy.Sectors, Unit: unit}})
	for seed := range uint64(8) {
		r.Trigger.Seed = seed
		b.faults(r)
		before := contentOf(t, b.under("log"))
		n, err := unix.Write(fd, data)
		must(t, err)
		got, e := contentOf(t, b.under("log")), b.one()
		end := int64(len(before))
		for _, p := range e.Places {
			if got[p.Offset:p.Offset+p.Size] != strings.Repeat("N", int(p.Size)) || p.Offset < int64(len(before)) {
				t.Errorf("part %+v", p)
			}
			end = p.Offset + p.Size
		}
		if n != len(data) || int64(len(got)) != end || !strings.HasPrefix(got, before) {
			t.Errorf("append of %d: the file has %d bytes, had %d, event %+v", n, len(got), len(before), e)
		}
	}
}

// A lost write is acknowledged and changes nothing; a lost sync does nothing.
func TestLost(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDWR)
	b.faults(fault(t, "write+fsync+fdatasync+fsyncdir", policy.IOFault{Lost: true}))
	if n, err := unix.Pwrite(fd, []byte("longer than the content"), 0); err != nil || n != 23 {
		t.Errorf("%d %v", n, err)
	}
	must(t, unix.Fsync(fd))
	must(t, unix.Fdatasync(fd))
	must(t, unix.Fsync(b.open("", unix.O_DIRECTORY)))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	buf := make([]byte, 99)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil || string(buf[:n]) != "content" || st.Size != 7 {
		t.Errorf("%q %v, size %d", buf[:max(n, 0)], err, st.Size)
	}
	for i, e := range b.recorded() {
		if want := []string{"write", "fsync", "fdatasync", "fsyncdir"}[i]; e.Op.String() != want || e.Action != fusefs.ActionLost || e.Errno != 0 {
			t.Errorf("event %+v, want %s", e, want)
		}
	}
}
