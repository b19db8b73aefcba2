package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attrNames are the fields of attr.
var attrNames = []string{"ino", "size", "blocks", "atime", "mtime", "ctime", "kind", "perm", "nlink", "uid", "gid", "rdev"}

// attrHints are what stat(2), stat(1) and Chaos Mesh call them.
var attrHints = map[string]string{
	"mode": "kind and perm", "type": "kind", "permission": "perm", "permissions": "perm", "links": "nlink", "owner": "uid", "group": "gid",
	"inode": "ino", "dev": "no field: st_dev is the layer's", "btime": "atime, mtime or ctime", "birth": "atime, mtime or ctime", "user": "uid",
}

var kindNames = []string{"regular", "directory", "symlink", "fifo", "socket", "char", "block"}

var kindBits = []uint32{syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK}

// kindHints are what find(1), stat(1) and Chaos Mesh call them.
var kindHints = map[string]string{
	"f": "regular", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket", "c": "char", "b": "block",
	"file": "regular", "reg": "regular", "regularfile": "regular", "dir": "directory", "link": "symlink", "lnk": "symlink",
	"pipe": "fifo", "namedpipe": "fifo", "sock": "socket", "chardevice": "char", "blockdevice": "block", "chr": "char", "blk": "block",
}

func (p *ruleParser) attr(w word) *SyntaxError {
	a := &Attr{}
	p.rule.IO.Attr = a
	seen := make(map[string]bool)
	for _, part := range w.value.split(",") {
		colon := strings.IndexByte(part.text, ':')
		if colon < 0 {
			return p.at(part.at(0), "write attr=NAME:VALUE,..., such as attr=size:0,perm:0600", "%q has no colon", part.text)
		}
		name, v := part.text[:colon], part.part(colon+1, len(part.text))
		switch {
		case slices.Index(attrNames, name) < 0:
			fix := "did you mean " + attrHints[strings.ToLower(name)] + "?"
			if attrHints[strings.ToLower(name)] == "" {
				fix = suggest(name, attrNames, "the attributes are "+strings.Join(attrNames, ", "))
			}
			return p.at(part.at(0), fix, "unknown attribute %q", name)
		case seen[name]:
			return p.at(part.at(0), "leave one of them out", "the attribute %s is given twice", name)
		case v.text == "":
			return p.at(part.at(0), "write "+name+":VALUE", "the attribute %s has no value", name)
		}
		seen[name] = true
		if err := p.attribute(a, name, v); err != nil {
			return err
		}
	}
	return nil
}

func (p *ruleParser) attribute(a *Attr, name string, v value) *SyntaxError {
	var err *SyntaxError
	switch name {
	case "ino":
		err = set(&a.Ino)(p.number(v, "the inode number", 1, math.MaxUint64))
	case "size":
		var n int64
		n, err = p.size(v, 0)
		err = set(&a.Size)(uint64(n), err)
	case "blocks":
		err = set(&a.Blocks)(p.number(v, "the number of 512-byte blocks", 0, math.MaxInt64))
	case "atime":
		err = set(&a.Atime)(p.instant(v))
	case "mtime":
		err = set(&a.Mtime)(p.instant(v))
	case "ctime":
		err = set(&a.Ctime)(p.instant(v))
	case "kind":
		err = set(&a.Kind)(p.kind(v))
	case "perm":
		err = set(&a.Perm)(p.perm(v))
	case "nlink":
		err = set(&a.Nlink)(p.number32(v, "the number of links", math.MaxUint32))
	case "uid":
		err = set(&a.UID)(p.number32(v, "the uid", maxID))
	case "gid":
		err = set(&a.GID)(p.number32(v, "the gid", maxID))
	case "rdev":
		err = set(&a.Rdev)(p.device(v))
	}
	return err
}

// maxID is the largest uid and gid; the number after it stands for none (chown(2)).
const maxID = math.MaxUint32 - 1

// set gives a function that keeps a value which was read without error.
func set[T any](to **T) func(T, *SyntaxError) *SyntaxError {
	return func(v T, err *SyntaxError) *SyntaxError {
		*to = &v
		return err
	}
}

func (p *ruleParser) number32(v value, what string, most uint64) (uint32, *SyntaxError) {
	n, err := p.number(v, what, 0, most)
	return uint32(n), err
}

// instant reads RFC 3339, a day, or @ and seconds since 1970 as date(1) takes them.
func (p *ruleParser) instant(v value) (time.Time, *SyntaxError) {
	const fix = "write 2020-01-01T00:00:00Z, 2020-01-01 or @1577836800"
	if seconds, ok := strings.CutPrefix(v.text, "@"); ok {
		n, err := strconv.ParseInt(seconds, 10, 64)
		// Times are written back in RFC 3339, which has four digits for the year.
		if t := time.Unix(n, 0).UTC(); err == nil && t.Year() >= 0 && t.Year() <= 9999 && n > -1<<40 && n < 1<<40 {
			return t, nil
		}
		return time.Time{}, p.at(v.at(0), fix, "%q is not a number of seconds from year 0 to 9999", v.text)
	}
	t, err := time.Parse(time.RFC3339, v.text)
	if err != nil {
		t, err = time.Parse(time.DateOnly, v.text)
	}
	if t = t.UTC(); err != nil || t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}, p.at(v.at(0), fix, "%q is not a time", v.text)
	}
	return t, nil
}

func (p *ruleParser) kind(v value) (uint32, *SyntaxError) {
	if i := slices.Index(kindNames, v.text); i >= 0 {
		return kindBits[i], nil
	}
	fix := "did you mean " + kindHints[strings.ToLower(v.text)] + "?"
	if kindHints[strings.ToLower(v.text)] == "" {
		fix = suggest(v.text, kindNames, "the kinds are "+strings.Join(kindNames, ", "))
	}
	return 0, p.at(v.at(0), fix, "unknown kind of file %q", v.text)
}

func kindName(bits uint32) string {
	for i, b := range kindBits {
		if b == bits {
			return kindNames[i]
		}
	}
	return "0" + strconv.FormatUint(uint64(bits), 8) // not one that a rule can say; see Check
}

func (p *ruleParser) perm(v value) (uint32, *SyntaxError) {
	n, err := strconv.ParseUint(v.text, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, p.at(v.at(0), "write an octal number from 0 to 07777, such as 0600", "%q are not permissions", v.text)
	}
	return uint32(n), nil
}

// device reads MAJOR:MINOR as ls -l and /proc/partitions have them; the kernel
// has 12 and 20 bits for them (include/linux/kdev_t.h).
func (p *ruleParser) device(v value) (uint64, *SyntaxError) {
	colon := strings.IndexByte(v.text, ':')
	if colon < 0 {
		return 0, p.at(v.at(0), "write MAJOR:MINOR, such as rdev:8:1", "%q is not a device", v.text)
	}
	major, err := p.number(v.part(0, colon), "the major number", 0, 1<<12-1)
	if err != nil {
		return 0, err
	}
	minor, err := p.number(v.part(colon+1, len(v.text)), "the minor number", 0, 1<<20-1)
	return unix.Mkdev(uint32(major), uint32(minor)), err
}

// text writes the attributes as a rule does.
func (a *Attr) text() string {
	var parts []string
	add := func(name, v string) { parts = append(parts, name+":"+v) }
	number := func(name string, v *uint64) {
		if v != nil {
			add(name, strconv.FormatUint(*v, 10))
		}
	}
	number32 := func(name string, v *uint32) {
		if v != nil {
			add(name, strconv.FormatUint(uint64(*v), 10))
		}
	}
	instant := func(name string, t *time.Time) {
		if t != nil {
			add(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	number("ino", a.Ino)
	number("size", a.Size)
	number("blocks", a.Blocks)
	instant("atime", a.Atime)
	instant("mtime", a.Mtime)
	instant("ctime", a.Ctime)
	if a.Kind != nil {
		add("kind", kindName(*a.Kind))
	}
	if a.Perm != nil {
		add("perm", "0"+strconv.FormatUint(uint64(*a.Perm), 8))
	}
	number32("nlink", a.Nlink)
	number32("uid", a.UID)
	number32("gid", a.GID)
	if a.Rdev != nil {
		add("rdev", strconv.FormatUint(uint64(unix.Major(*a.Rdev)), 10)+":"+strconv.FormatUint(uint64(unix.Minor(*a.Rdev)), 10))
	}
	return strings.Join(parts, ",")
}
