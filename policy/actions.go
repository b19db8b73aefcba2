package policy

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Limits of what actions do to one operation.
const (
	maxPlaces   = 1000
	maxPlace    = 1 << 20 // bytes
	maxTornUnit = 1 << 30 // bytes
)

func (p *ruleParser) errors(w word) *SyntaxError {
	weighted := strings.Contains(w.value.text, ":")
	for _, part := range w.value.split(",") {
		name, weight, err := p.errno(part)
		if err != nil {
			return err
		}
		for _, e := range p.rule.IO.Errors {
			if e.Errno == name {
				fix := "leave one of them out"
				if weighted {
					fix = "add their weights up"
				}
				return p.at(part.at(0), fix, "the errno %s is given twice", ErrnoName(name))
			}
		}
		p.rule.IO.Errors = append(p.rule.IO.Errors, WeightedErrno{name, weight})
	}
	return nil
}

// errno reads EIO or EIO:3.
func (p *ruleParser) errno(v value) (syscall.Errno, uint32, *SyntaxError) {
	name, weight := v, uint64(1)
	if i := strings.IndexByte(v.text, ':'); i >= 0 {
		var err *SyntaxError
		if weight, err = p.number(v.part(i+1, len(v.text)), "the weight", 1, math.MaxUint32); err != nil {
			return 0, 0, err
		}
		name = v.part(0, i)
	}
	e, ok := ParseErrno(name.text)
	switch {
	case name.text == "":
		return 0, 0, p.at(name.at(0), "write error=EIO or error=EIO:3,ENOSPC:1", "an errno is missing")
	case !ok && strings.Contains(name.text, "+"):
		return 0, 0, p.at(name.at(strings.IndexByte(name.text, '+')), "part them with commas", "+ between two errors")
	case !ok:
		return 0, 0, p.at(name.at(0), suggest(name.text, errnoNames, "use a name of errno(3), such as EIO or ENOSPC"), "unknown errno %q", name.text)
	case e == syscall.ENOSYS:
		// fs/fuse: after an ENOSYS the kernel never sends that request again
		// and, for fsync, flush and others, tells programs that it succeeded:
		// a fault without an end.
		return 0, 0, p.at(name.at(0), "use EOPNOTSUPP", "ENOSYS would switch the operation off in the kernel for the life of the layer")
	case e > maxFuseErrno:
		return 0, 0, p.at(name.at(0), "use another one", "%s is %d on this machine, and FUSE can answer 1 to %d only", name.text, int(e), maxFuseErrno)
	}
	return e, uint32(weight), nil
}

// maxFuseErrno is the largest errno that the kernel takes in an answer (fs/fuse/dev.c, fuse_dev_do_write).
const maxFuseErrno = 511

func (p *ruleParser) hang(word) *SyntaxError {
	p.rule.IO.Hang = true
	return nil
}

func (p *ruleParser) lost(word) *SyntaxError {
	p.rule.IO.Lost = true
	return nil
}

func (p *ruleParser) short(w word) *SyntaxError {
	const fix = "write short=50%, short=512 or short=random"
	v := w.value
	s := &Short{}
	p.rule.IO.Short = s
	if v.text == "random" {
		s.Random = true
		return nil
	}
	if number, percent := strings.CutSuffix(v.text, "%"); percent {
		// Read as a decimal with its point moved, so that it is the very number that is written back.
		f, err := strconv.ParseFloat(number+"e-2", 64)
		switch {
		case !plainDecimal.MatchString(number) || err != nil:
			return p.at(v.at(0), fix, "short=%s is not a share", v.text)
		case f <= 0 || f >= 1:
			return p.at(v.at(0), "write a share above 0% and below 100%", "short=%s makes no sense", v.text)
		}
		s.Share = f
		return nil
	}
	if plainDecimal.MatchString(v.text) && strings.Contains(v.text, ".") {
		return p.at(v.at(0), "write a share with %, such as 50%", "short=%s is not a whole number of bytes", v.text)
	}
	if v.text[0] < '0' || v.text[0] > '9' {
		return p.at(v.at(0), suggest(v.text, []string{"random"}, fix), "short=%s is not a size or share", v.text)
	}
	var err *SyntaxError
	s.Bytes, err = p.size(v, 1)
	return err
}

func (p *ruleParser) corrupt(w word) *SyntaxError {
	name, args, err := p.call(w.value)
	if err != nil {
		return err
	}
	kind := slices.Index(corruptNames[:], name.text)
	if kind < 0 {
		return p.at(name.at(0), suggest(name.text, corruptNames[:], "write bitflip, zero or random"), "unknown corruption %q", name.text)
	}
	c := &Corrupt{Kind: CorruptKind(kind), Places: 1, Bytes: 1}
	p.rule.IO.Corrupt = c
	if len(args) > 2 {
		return p.at(args[2].at(0), "write for instance "+exampleCalls[name.text], "%s takes at most two values: places, and bytes of each", name.text)
	}
	if len(args) > 0 {
		n, err := p.number(args[0], "the number of places", 1, maxPlaces)
		if err != nil {
			return err
		}
		c.Places = uint32(n)
	}
	if len(args) > 1 {
		n, err := p.sizeTo(args[1], maxPlace)
		if err != nil {
			return err
		}
		c.Bytes = n
	}
	return nil
}

// sizeTo reads a size from 1 to a limit.
func (p *ruleParser) sizeTo(v value, most int64) (uint32, *SyntaxError) {
	n, err := p.size(v, 1)
	if err == nil && n > most {
		err = p.at(v.at(0), "the largest is "+sizeText(most), "the size %s is too large", v.text)
	}
	return uint32(n), err
}

const defaultTornUnit = 512 // a sector

func (p *ruleParser) torn(w word) *SyntaxError {
	name, args, err := p.call(w.value)
	if err != nil {
		return err
	}
	kind := slices.Index(tornNames[:], name.text)
	if kind < 0 {
		return p.at(name.at(0), suggest(name.text, tornNames[:], "write prefix or sectors"), "unknown kind of torn write %q", name.text)
	}
	t := &Torn{Kind: TornKind(kind), Unit: defaultTornUnit}
	p.rule.IO.Torn = t
	if len(args) > 1 {
		return p.at(args[1].at(0), "write for instance "+exampleCalls[name.text], "%s takes one value, the size of what is written whole or not at all", name.text)
	}
	if len(args) == 1 {
		t.Unit, err = p.sizeTo(args[0], maxTornUnit)
	}
	return err
}

func (p *ruleParser) space(w word) *SyntaxError {
	n, err := p.size(w.value, 0)
	if p.rule.IO.Space == nil { // with both, finish complains
		p.rule.IO.Space = &Space{Bytes: n, Quota: w.name == "quota"}
	}
	return err
}
