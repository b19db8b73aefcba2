package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Meaning is one thing that a rule says, in words.
type Meaning struct {
	// Name says what it is about: "does", "on", "path", and so on.
	Name string `json:"name"`
	Text string `json:"text"`
}

// Explain says in words what a rule means, every field of it. It is for people;
// the words may change.
func (r Rule) Explain() []Meaning {
	var e explainer
	if f := r.IO; f != nil {
		e.say("does", strings.Join(f.does(), "; then "))
		e.say("on", f.Ops.words())
		e.say("path", f.Path)
		e.say("but not", strings.Join(f.Exclude, ", "))
		e.say("by", f.Caller.words())
		e.say("where", f.where())
	}
	if f := r.Kernel; f != nil {
		e.kernel(f)
	}
	e.say("when", r.Trigger.when())
	e.say("from", r.Trigger.from())
	e.say("until", "a ttl of "+r.Trigger.TTL.String()+" is over")
	switch {
	case r.Trigger.Seeded:
		e.say("seed", strconv.FormatUint(r.Trigger.Seed, 10))
	case r.draws():
		e.say("seed", "drawn when the rule is applied, and shown there")
	}
	if r.IO != nil {
		e.say("layer", "over "+GraftPath(r.IO.Path))
	}
	return e.said
}

type explainer struct{ said []Meaning }

func (e *explainer) say(name, text string) {
	if text != "" {
		e.said = append(e.said, Meaning{name, text})
	}
}

// draws reports whether anything about the rule is random.
func (r Rule) draws() bool {
	f := r.IO
	return r.Trigger.P > 0 && r.Trigger.P < 1 ||
		f != nil && (len(f.Errors) > 1 || f.Latency != nil && f.Latency.Kind != Fixed || f.Short != nil && f.Short.Random || f.Corrupt != nil || f.Torn != nil)
}

// does lists what the rule does, in order.
func (f *IOFault) does() []string {
	var steps []string
	if f.Throttle != nil {
		steps = append(steps, f.Throttle.words())
	}
	if f.Latency != nil {
		steps = append(steps, f.Latency.words())
	}
	if f.Hang {
		steps = append(steps, "hangs until it is released (faultgraft release), killed, or the rule ends")
	}
	switch {
	case f.Torn != nil:
		steps = append(steps, f.Torn.words(f.Errors))
	case len(f.Errors) > 0:
		steps = append(steps, "fails with "+errorWords(f.Errors))
	case f.Short != nil:
		steps = append(steps, f.Short.words())
	case f.Corrupt != nil:
		steps = append(steps, f.Corrupt.words())
	case f.Lost:
		steps = append(steps, "is acknowledged and not done")
	case f.Space != nil:
		steps = append(steps, f.Space.words())
	case f.Attr != nil:
		steps = append(steps, "tells other attributes: "+strings.ReplaceAll(f.Attr.text(), ",", ", "))
	}
	return steps
}

func (t *Throttle) words() string {
	var rates, bursts []string
	if t.BytesPerSec != 0 {
		rates = append(rates, sizeText(t.BytesPerSec)+" a second")
	}
	if t.OpsPerSec != 0 {
		rates = append(rates, decimalText(t.OpsPerSec)+" operations a second")
	}
	s := "waits for its turn at " + strings.Join(rates, " and ")
	if t.BurstBytes != 0 {
		bursts = append(bursts, sizeText(t.BurstBytes))
	}
	if t.BurstOps != 0 {
		bursts = append(bursts, decimalText(t.BurstOps)+" operations")
	}
	if len(bursts) > 0 {
		s += ", after a rest " + strings.Join(bursts, " and ") + " at once"
	}
	return s
}

func (l *Latency) words() string {
	var s string
	switch l.Kind {
	case Fixed:
		return "waits " + l.Base.String()
	case Uniform:
		s = fmt.Sprintf("waits %v to %v, evenly drawn", l.Base, l.Base+l.Spread)
	case Normal:
		s = fmt.Sprintf("waits %v on average, normally distributed with a standard deviation of %v", l.Base, l.Spread)
	case Exp:
		s = fmt.Sprintf("waits %v on average, exponentially distributed", l.Base)
	case Pareto:
		s = fmt.Sprintf("waits %v or longer, Pareto distributed with the tail index %s", l.Base, decimalText(l.Shape))
	}
	s += fmt.Sprintf(" (half of the waits above %v, 1 in 100 above %v)", rounded(l.quantile(0.5)), rounded(l.quantile(0.99)))
	if l.Cap > 0 {
		s += ", at most " + l.Cap.String()
	}
	return s
}

// rounded keeps three digits.
func rounded(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

func errorWords(errors []WeightedErrno) string {
	if len(errors) == 1 {
		return ErrnoName(errors[0].Errno) + " (" + errors[0].Errno.Error() + ")"
	}
	var sum float64
	for _, e := range errors {
		sum += float64(e.Weight)
	}
	parts := make([]string, 0, len(errors))
	for _, e := range errors {
		parts = append(parts, fmt.Sprintf("%s (%s, %.3g%%)", ErrnoName(e.Errno), e.Errno.Error(), 100*float64(e.Weight)/sum))
	}
	return strings.Join(parts, " or ")
}

func (s *Short) words() string {
	switch {
	case s.Random:
		return "transfers from one byte to one less than was asked for"
	case s.Share != 0:
		return "transfers " + percent(s.Share) + " of what was asked for, at least one byte"
	}
	return "transfers " + sizeWords(uint64(s.Bytes)) + " at most"
}

func (c *Corrupt) words() string {
	what := [...]string{Bitflip: "has a bit of each byte flipped", Zero: "has bytes become 0", Random: "has bytes become random others"}[c.Kind]
	where := "in one place"
	if c.Places > 1 {
		where = fmt.Sprintf("in %d places", c.Places)
	}
	if c.Bytes == 1 {
		return what + ", " + where + " of one byte"
	}
	return what + ", " + where + " of up to " + sizeWords(uint64(c.Bytes))
}

func (t *Torn) words(errors []WeightedErrno) string {
	what := [...]string{Prefix: "writes a part from the start, or nothing", Sectors: "writes some parts, or none"}[t.Kind]
	what += ", of whole units of " + sizeWords(uint64(t.Unit)) + " but never all"
	if len(errors) > 0 {
		return what + ", and fails with " + errorWords(errors)
	}
	return what + ", and is acknowledged"
}

func (s *Space) words() string {
	errno := "ENOSPC"
	if s.Quota {
		errno = "EDQUOT"
	}
	if s.Bytes == 0 {
		return "fails with " + errno + " if it takes space; statfs agrees"
	}
	return "fails with " + errno + " if it takes space, once " + sizeWords(uint64(s.Bytes)) + " more are taken; statfs agrees"
}

// words names the operations, or those that are not among them when these are few.
func (s OpSet) words() string {
	missing := GroupAll &^ s
	switch {
	case missing == 0:
		return "every operation"
	case len(missing.Ops()) <= 4:
		return "every operation but " + missing.list()
	}
	return s.list()
}

func (c *Caller) words() string {
	var parts []string
	if c.NeedsComm() {
		parts = append(parts, "threads named "+strings.Join(c.Comm, " or "))
	}
	if c.NeedsExe() {
		parts = append(parts, "the program "+strings.Join(c.Exe, " or "))
	}
	if c.NeedsUID() {
		parts = append(parts, "uid "+rangeWords(c.UID, maxID, plainNumber))
	}
	if c.NeedsPID() {
		parts = append(parts, "pid "+rangeWords(c.PID, maxID, plainNumber))
	}
	return strings.Join(parts, ", ")
}

func plainNumber(n uint64) string { return strconv.FormatUint(n, 10) }

func rangeWords(ranges []Range, most uint64, number func(uint64) string) string {
	parts := make([]string, 0, len(ranges))
	for _, r := range ranges {
		switch {
		case r.From == r.To:
			parts = append(parts, number(r.From))
		case r.To == most:
			parts = append(parts, number(r.From)+" or more")
		default:
			parts = append(parts, number(r.From)+" to "+number(r.To))
		}
	}
	return strings.Join(parts, " or ")
}

// where says which part of a file and which sizes.
func (f *IOFault) where() string {
	var parts []string
	if r := f.Offset; r != nil {
		switch {
		case r.From == r.To:
			parts = append(parts, "it touches byte "+plainNumber(r.From)+" of the file, counted from 0")
		case r.To == math.MaxUint64:
			parts = append(parts, "it touches the file from byte "+plainNumber(r.From)+" on, counted from 0")
		default:
			parts = append(parts, fmt.Sprintf("it touches bytes %d to %d of the file, counted from 0", r.From, r.To))
		}
	}
	if f.Size != nil {
		parts = append(parts, "it is for "+rangeWords([]Range{*f.Size}, math.MaxUint64, sizeWords))
	}
	return strings.Join(parts, ", and ")
}

// sizeWords writes a size, with its unit also when it is a number of bytes.
func sizeWords(n uint64) string {
	s := byteText(n)
	switch {
	case strings.HasSuffix(s, "B"):
		return s
	case n == 1:
		return "1 byte"
	}
	return s + " bytes"
}

// when says on which of the operations the rule fires.
func (t *Trigger) when() string {
	var parts []string
	if t.AfterBytes > 0 {
		parts = append(parts, "from the one on that goes beyond "+sizeWords(t.AfterBytes))
	}
	switch {
	case t.Times == 1 && t.Every <= 1 && t.P == 1:
		return strings.Join(append(parts, fmt.Sprintf("number %d only", t.After+1)), ", ")
	case t.After > 0 && t.Every <= 1:
		parts = append(parts, fmt.Sprintf("all after the first %d", t.After))
	case t.After > 0:
		parts = append(parts, fmt.Sprintf("number %d and each %d after it", t.After+1, t.Every))
	case t.Every > 1:
		parts = append(parts, fmt.Sprintf("the first of each %d", t.Every))
	default:
		parts = append(parts, "all of them")
	}
	switch {
	case t.P == 0:
		parts = append(parts, "but never, because p is 0")
	case t.P < 1:
		share := percent(t.P)
		if len(share) > 8 {
			share = decimalText(t.P)
		}
		parts = append(parts, "each with a probability of "+share)
	}
	if t.Times > 0 {
		parts = append(parts, fmt.Sprintf("at most %d times", t.Times))
	}
	return strings.Join(parts, ", ")
}

// from says at which times the rule acts.
func (t *Trigger) from() string {
	start := "its activation"
	if t.Delay > 0 {
		start = t.Delay.String() + " after its activation"
	}
	if t.Active > 0 {
		return fmt.Sprintf("%s on, in turns %v active and %v at rest", start, t.Active, t.Idle)
	}
	return start + " on"
}
