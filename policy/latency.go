package policy

import (
	"slices"
	"strings"
	"time"
)

func (p *ruleParser) latency(w word) *SyntaxError {
	v := w.value
	name, args, err := p.call(v)
	if err != nil {
		return err
	}
	l := p.waiting()
	kind := slices.Index(distributionNames[:], name.text)
	switch {
	case kind > int(Fixed):
		l.Kind = Distribution(kind)
		return p.distribution(l, v, args)
	case args != nil:
		return p.at(v.at(0), suggest(name.text, distributionNames[Uniform:], "write uniform, normal, exp or pareto, or a time alone"), "unknown distribution %q", name.text)
	case strings.Contains(v.text, ","):
		return p.at(v.at(0), "write uniform(10ms,50ms) for a time between two", "latency=%s is not a duration", v.text)
	}
	l.Base, err = p.duration(v, "latency", false)
	return err
}

// waiting gives the rule's latency; cap may come before latency.
func (p *ruleParser) waiting() *Latency {
	if p.rule.IO.Latency == nil {
		p.rule.IO.Latency = &Latency{}
	}
	return p.rule.IO.Latency
}

// distribution reads what a distribution has in its parentheses.
func (p *ruleParser) distribution(l *Latency, v value, args []value) (err *SyntaxError) {
	name, want, words := l.Kind.String(), 2, "two values"
	if l.Kind == Exp {
		want, words = 1, "one value"
	}
	if len(args) != want {
		return p.at(v.at(0), "write for instance "+exampleCalls[name], "%s takes %s", name, words)
	}
	mayBeZero := l.Kind == Uniform || l.Kind == Normal
	if l.Base, err = p.duration(args[0], name, mayBeZero); err != nil {
		return err
	}
	switch l.Kind {
	case Uniform:
		var to time.Duration
		if to, err = p.duration(args[1], name, false); err != nil {
			return err
		}
		if l.Spread = to - l.Base; l.Spread <= 0 {
			return p.at(args[0].at(0), "write the shorter time first", "%s(%s,%s) has nothing to draw from", name, args[0].text, args[1].text)
		}
	case Normal:
		l.Spread, err = p.duration(args[1], name, false)
	case Pareto:
		l.Shape, err = p.ratio(args[1], "the tail index", "write for instance pareto(10ms,1.5)")
	}
	return err
}

func (p *ruleParser) latencyCap(w word) (err *SyntaxError) {
	p.waiting().Cap, err = p.duration(w.value, "cap", false)
	return err
}

// checkLatency checks the latency against its cap; checkTimes has the ttl.
func (p *ruleParser) checkLatency() *SyntaxError {
	c, capped := p.seen["cap"]
	if !capped {
		return nil
	}
	l := p.rule.IO.Latency
	_, waits := p.seen["latency"]
	switch {
	case !waits:
		return p.at(c.at, "add latency=exp(20ms) or another distribution", "cap without latency")
	case l.Kind == Fixed:
		return p.at(c.at, "leave it out, or use uniform, normal, exp or pareto", "cap means nothing for a latency that is fixed")
	case l.Kind != Normal && l.Kind != Exp && l.Cap <= l.Base:
		return p.at(c.value.at(0), "use a longer one", "cap=%s is not above the shortest latency, %v: each one would be cut", c.value.text, l.Base)
	case l.Kind == Uniform && l.Cap >= l.Base+l.Spread:
		return p.at(c.value.at(0), "leave it out", "cap=%s is not below the longest latency, %v: none would be cut", c.value.text, l.Base+l.Spread)
	}
	return nil
}
