package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// attrNames are the fields of attr.
var attrNames = []string{"ino", "size", "blocks", "atime", "mtime", "ctime", "perm", "nlink", "uid", "gid"}

// attrHints are what stat(2), stat(1) and Chaos Mesh call them.
var attrHints = map[string]string{
	"mode": "perm", "permission": "perm", "permissions": "perm", "links": "nlink", "owner": "uid", "group": "gid",
	"inode": "ino", "btime": "atime, mtime or ctime", "birth": "atime, mtime or ctime", "user": "uid",
}

// fixedAttrs are those that the kernel takes from the object it knows, whatever
// the answer says (fs/fuse/dir.c, fuse_fillattr and fuse_do_getattr).
var fixedAttrs = map[string]string{
	"dev":  "it is that of the layer's mount",
	"kind": "an object whose kind changes is a broken one for the kernel, and every call on it fails",
	"rdev": "the kernel tells the number of the device that an open would reach",
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
		case fixedAttrs[name] != "":
			return p.at(part.at(0), "leave it out", "the attribute %s cannot be overridden: "+fixedAttrs[name], name)
		case !slices.Contains(attrNames, name):
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
	case "perm":
		err = set(&a.Perm)(p.perm(v))
	case "nlink":
		err = set(&a.Nlink)(p.number32(v, "the number of links", math.MaxUint32))
	case "uid":
		err = set(&a.UID)(p.number32(v, "the uid", maxID))
	case "gid":
		err = set(&a.GID)(p.number32(v, "the gid", maxID))
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

func (p *ruleParser) perm(v value) (uint32, *SyntaxError) {
	n, err := strconv.ParseUint(v.text, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, p.at(v.at(0), "write an octal number from 0 to 07777, such as 0600", "%q are not permissions", v.text)
	}
	return uint32(n), nil
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
	if a.Perm != nil {
		add("perm", "0"+strconv.FormatUint(uint64(*a.Perm), 8))
	}
	number32("nlink", a.Nlink)
	number32("uid", a.UID)
	number32("gid", a.GID)
	return strings.Join(parts, ",")
}
