package predicate_test

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// TestStrings runs comparisons of strings in the kernel, on the memory of this
// process.
func TestStrings(t *testing.T) {
	s := smallSpec(t)
	const page = 4096
	// two pages, of which the second cannot be read
	area, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(area); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mprotect(area[page:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	address := func(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
	long := strings.Repeat("0123456789", 25)
	for _, c := range []struct {
		text    string
		name    string // of the array
		pointer string // what r->text points to; without its 0 when it begins with "!"
		want    bool
	}{
		// a full array has no 0 at its end: the next member follows
		{`r->name == "0123456789abcdef"`, "0123456789abcdefGH", "", true},
		{`r->name == "0123456789abcdeX"`, "0123456789abcdefGH", "", false},
		{`r->name != "0123456789abcdeX"`, "0123456789abcdefGH", "", true},
		{`r->name == "0123456789abcde"`, "0123456789abcde", "", true},
		{`r->name == "0123456789abcde"`, "0123456789abcdef", "", false},
		{`r->name startswith "0123456789abcdef"`, "0123456789abcdefGH", "", true},
		{`r->name startswith "0123456789abcdef"`, "0123456789abcde", "", false},
		{`r->name == ""`, "", "", true},
		{`r->name == ""`, "x", "", false},
		{`r->name == "a"`, "a", "", true},
		{`r->name == "a"`, "ab", "", false},
		{`STRNCMP(r->name, "ab", 1)`, "ax", "", true},
		{`STRNCMP("ab", r->name, 9)`, "ab", "", true},
		{`STRNCMP(r->name, "ab", 3)`, "abc", "", false},
		{`r->name == "\xff\x80\x7f"`, "\xff\x80\x7f", "", true},
		{`r->name startswith "\x80\xff\xfe\xfd\xfc\xfb\xfa\xf9"`, "\x80\xff\xfe\xfd\xfc\xfb\xfa\xf9", "", true},
		// pointers; the end of the string is the end of what can be read
		{`r->text == "bananas"`, "", "bananas", true},
		{`r->text == "bananas"`, "", "bananasplit", false},
		{`r->text == "bananasplit"`, "", "bananas", false},
		{`r->text startswith "bananas"`, "", "bananasplit", true},
		{`r->text startswith "bananasplit"`, "", "bananas", false},
		{`!(r->text startswith "bananasplit")`, "", "bananas", true},
		{`r->text == "` + long + `"`, "", long, true},
		{`r->text == "` + long + `"`, "", long + "x", false},
		{`r->text == "` + long + `"`, "", long[:249], false},
		{`r->text startswith "` + long + `"`, "", long + "x", true},
		{`r->text != "` + long + `"`, "", long[:126], true},
		{`r->text == "` + long[:126] + `"`, "", long[:126], true},
		{`r->text == "` + long[:63] + `"`, "", long[:63], true},
		{`r->text == "` + long[:62] + `"`, "", long[:63], false},
		{`r->text[1] == 'b'`, "", "abc", true},
		{`r->next->name == "x" || true`, "", "", true}, // the checker drops what does not matter
		// the string does not end before the memory does: it cannot be read, nothing is true
		{`r->text == "bananas"`, "", "!banana", false},
		{`r->text != "bananas"`, "", "!banana", false},
		{`!(r->text == "bananas")`, "", "!banana", false},
		{`r->text == "ban"`, "", "!banana", false}, // decided before the end
		{`r->text != "ban"`, "", "!banana", true},
		{`r->text startswith "ban"`, "", "!banana", true},
		{`r->text == "` + long + `" || r->name == ""`, "", "!" + long, false},
		{`r->name == "" || r->text == "` + long + `"`, "", "!" + long, true},
	} {
		e, err := predicate.Parse(c.text)
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		code, err := predicate.Compile(e, predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no", Prefix: "p"})
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		r := newRunner(t, code, "no")
		memory := make([]byte, 256)
		copy(memory[56:], c.name)
		text, unended := strings.CutPrefix(c.pointer, "!")
		if !unended {
			text += "\x00"
		}
		end := area[:page]
		clear(end)
		at := end[page-len(text):]
		copy(at, text)
		var pin runtime.Pinner
		pin.Pin(&memory[0])
		*(*uint64)(unsafe.Pointer(&memory[96])) = address(at)
		var args [12]uint64
		args[0] = address(memory)
		if got := r.run(t, args); got != c.want {
			t.Errorf("%s with name %q, text %q: %t\n%v", c.text, c.name, c.pointer, got, code)
		}
		pin.Unpin()
		if err := r.prog.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUserSpace follows pointers in user space, where BTF says that they are.
func TestUserSpace(t *testing.T) {
	s := smallSpec(t)
	e, err := predicate.Parse(`r->next->next->s16 == -2 && r->next->name == "middle" && r->next->next->next == NULL`)
	if err != nil {
		t.Fatal(err)
	}
	code, err := predicate.Compile(e, predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no", Prefix: "p"})
	if err != nil {
		t.Fatal(err)
	}
	r := newRunner(t, code, "no")
	records := slices.Repeat([]byte{0}, 3*128)
	var pin runtime.Pinner
	pin.Pin(&records[0])
	defer pin.Unpin()
	next := func(i int) *uint64 { return (*uint64)(unsafe.Pointer(&records[128*i+88])) }
	*next(0) = uint64(uintptr(unsafe.Pointer(&records[128])))
	*next(1) = uint64(uintptr(unsafe.Pointer(&records[256])))
	copy(records[128+56:], "middle")
	records[256+2], records[256+3] = 0xfe, 0xff
	args := [12]uint64{uint64(uintptr(unsafe.Pointer(&records[0])))}
	if !r.run(t, args) {
		t.Error("false")
	}
	*next(0) = 0
	if r.run(t, args) {
		t.Error("true with a NULL pointer")
	}
}
