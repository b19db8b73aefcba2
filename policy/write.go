package policy

import (
	"strconv"
	"strings"
)

// String writes the rule in the rule language, every field but the name; it
// parses to an equal rule (Text aside).
func (r Rule) String() string {
	w := ruleWriter{}
	if r.IO != nil {
		w.b.WriteString("io")
		w.waits(r.IO)
		w.outcome(r.IO)
		w.filters(r.IO)
	}
	if r.Kernel != nil {
		w.b.WriteString("kernel")
		w.kernel(r.Kernel)
	}
	w.trigger(&r.Trigger)
	return w.b.String()
}

type ruleWriter struct{ b strings.Builder }

func (w *ruleWriter) field(name, value string) { w.b.WriteString(" " + name + "=" + value) }

// list writes a field of globs.
func (w *ruleWriter) list(name string, globs []string) {
	if len(globs) > 0 {
		w.field(name, quote(strings.Join(globs, ",")))
	}
}

func (w *ruleWriter) waits(f *IOFault) {
	if t := f.Throttle; t != nil {
		w.field("throttle", pair(t.BytesPerSec, "/s", t.OpsPerSec, "ops/s"))
		if t.BurstBytes != 0 || t.BurstOps != 0 {
			w.field("burst", pair(t.BurstBytes, "", t.BurstOps, "ops"))
		}
	}
	if l := f.Latency; l != nil {
		w.field("latency", l.text())
		if l.Cap != 0 {
			w.field("cap", l.Cap.String())
		}
	}
	if f.Hang {
		w.b.WriteString(" hang")
	}
}

// pair writes an amount of bytes, of operations, or both.
func pair(bytes int64, perBytes string, ops float64, perOps string) string {
	var parts []string
	if bytes != 0 {
		parts = append(parts, sizeText(bytes)+perBytes)
	}
	if ops != 0 {
		parts = append(parts, decimalText(ops)+perOps)
	}
	return strings.Join(parts, ",")
}

func decimalText(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

func (l *Latency) text() string {
	switch l.Kind {
	case Uniform:
		return "uniform(" + l.Base.String() + "," + (l.Base + l.Spread).String() + ")"
	case Normal:
		return "normal(" + l.Base.String() + "," + l.Spread.String() + ")"
	case Exp:
		return "exp(" + l.Base.String() + ")"
	case Pareto:
		return "pareto(" + l.Base.String() + "," + decimalText(l.Shape) + ")"
	}
	return l.Base.String()
}

func (w *ruleWriter) outcome(f *IOFault) {
	if len(f.Errors) > 0 {
		w.field("error", errorsText(f.Errors))
	}
	if f.Short != nil {
		w.field("short", f.Short.text())
	}
	if c := f.Corrupt; c != nil {
		w.field("corrupt", c.Kind.String()+"("+strconv.FormatUint(uint64(c.Places), 10)+","+sizeText(int64(c.Bytes))+")")
	}
	if t := f.Torn; t != nil {
		w.field("torn", t.Kind.String()+"("+sizeText(int64(t.Unit))+")")
	}
	if f.Lost {
		w.b.WriteString(" lost")
	}
	if s := f.Space; s != nil {
		name := "nospace"
		if s.Quota {
			name = "quota"
		}
		w.field(name, sizeText(s.Bytes))
	}
	if f.Attr != nil {
		w.field("attr", f.Attr.text())
	}
}

func errorsText(errors []WeightedErrno) string {
	weighted := false
	for _, e := range errors {
		weighted = weighted || e.Weight != 1
	}
	parts := make([]string, 0, len(errors))
	for _, e := range errors {
		s := ErrnoName(e.Errno)
		if weighted {
			s += ":" + strconv.FormatUint(uint64(e.Weight), 10)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ",")
}

func (s *Short) text() string {
	switch {
	case s.Random:
		return "random"
	case s.Share != 0:
		return percent(s.Share)
	}
	return sizeText(s.Bytes)
}

// percent writes a share of 0 to 1 by moving its decimal point, so that no digit changes.
func percent(share float64) string {
	whole, fraction, _ := strings.Cut(strconv.FormatFloat(share, 'f', -1, 64), ".")
	for len(fraction) < 2 {
		fraction += "0"
	}
	whole = strings.TrimLeft(whole+fraction[:2], "0")
	if whole == "" {
		whole = "0"
	}
	if fraction = fraction[2:]; fraction != "" {
		whole += "." + fraction
	}
	return whole + "%"
}

func (w *ruleWriter) filters(f *IOFault) {
	if f.Attr == nil && f.Space == nil || f.Ops != f.fitting() { // otherwise these two say it themselves
		w.field("op", f.Ops.short(f.fitting()))
	}
	w.field("path", quote(f.Path))
	w.list("exclude", f.Exclude)
	w.caller(&f.Caller)
	if f.Offset != nil {
		w.field("offset", offsetText(*f.Offset))
	}
	if f.Size != nil {
		w.field("size", sizesText(*f.Size))
	}
}

func (w *ruleWriter) caller(c *Caller) {
	w.list("comm", c.Comm)
	w.list("exe", c.Exe)
	if len(c.UID) > 0 {
		w.field("uid", idsText(c.UID))
	}
	if len(c.PID) > 0 {
		w.field("pid", idsText(c.PID))
	}
}

func (w *ruleWriter) kernel(f *KernelFault) {
	hook := f.Hook.String()
	if f.Where != "" {
		hook += "(" + f.Where + ")"
	}
	w.field("hook", hook)
	w.field("error", f.Error.String())
	if len(f.Within) > 0 {
		frames := make([]string, 0, len(f.Within))
		for _, frame := range f.Within {
			frames = append(frames, frame.String())
		}
		w.field("within", strings.Join(frames, ","))
	}
	w.caller(&f.Caller)
	if f.Backend != "" {
		w.field("backend", f.Backend)
	}
	if f.Stack {
		w.b.WriteString(" stack")
	}
}

func (w *ruleWriter) trigger(t *Trigger) {
	if t.P != 1 {
		w.field("p", decimalText(t.P))
	}
	for _, n := range []struct {
		name  string
		value uint64
	}{{"after", t.After}, {"every", t.Every}, {"times", t.Times}} {
		if n.value != 0 {
			w.field(n.name, strconv.FormatUint(n.value, 10))
		}
	}
	if t.AfterBytes != 0 {
		w.field("afterBytes", byteText(t.AfterBytes))
	}
	if t.Delay > 0 {
		w.field("delay", t.Delay.String())
	}
	if t.Active != 0 || t.Idle != 0 {
		w.field("active", t.Active.String())
		w.field("idle", t.Idle.String())
	}
	w.field("ttl", t.TTL.String())
	if t.Seeded {
		w.field("seed", strconv.FormatUint(t.Seed, 10))
	}
}
