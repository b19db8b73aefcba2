package policy

import "strings"

// finish checks what needs all fields.
func (p *ruleParser) finish() *SyntaxError {
	for _, check := range p.language.checks {
		if err := check(p); err != nil {
			return err
		}
	}
	if len(p.rule.String()) > MaxRuleLength {
		return p.whole("split it into several rules", "the rule is longer than %d bytes when everything in it is written out", MaxRuleLength)
	}
	return nil
}

// end is where something is missing.
func (p *ruleParser) end() int { return len(strings.TrimRight(p.text, " \t\r\n")) }

// given lists those of the fields that the rule has, in the order of the text.
func (p *ruleParser) given(names []string) []word {
	var words []word
	for _, n := range names {
		w, ok := p.seen[n]
		if !ok {
			continue
		}
		at := len(words)
		for at > 0 && words[at-1].at > w.at {
			at--
		}
		words = append(words[:at], append([]word{w}, words[at:]...)...)
	}
	return words
}

// checkActions checks that the rule does something, and one thing.
func (p *ruleParser) checkActions() *SyntaxError {
	outcomes := p.given(outcomeFields)
	if len(outcomes) == 0 && len(p.given(waitFields)) == 0 {
		// burst and cap alone are complaints of their own.
		if _, ok := p.seen["burst"]; ok {
			return p.checkThrottle()
		}
		if _, ok := p.seen["cap"]; ok {
			return p.checkLatency()
		}
		if w, ok := p.seen["delay"]; ok { // Chaos Mesh and tc say delay for a latency
			return p.at(w.at, "did you mean latency="+w.value.text+"? delay is how long the rule waits before it begins", "the rule does nothing: delay is not an action")
		}
		return p.at(p.end(), "add error=EIO, latency=100ms or another action of docs/faults.md", "the rule does nothing: no action is given")
	}
	if waits := p.given(waitFields); len(waits) > 0 && p.rule.IO.Space != nil {
		space := p.given([]string{"nospace", "quota"})[0]
		return p.at(max(waits[0].at, space.at), "write a rule of its own for the wait", "%s and %s cannot stand together", space.name, waits[0].name)
	}
	if len(outcomes) < 2 || len(outcomes) == 2 && p.rule.IO.Torn != nil && len(p.rule.IO.Errors) > 0 {
		return nil
	}
	first, second := outcomes[0], outcomes[1]
	if p.rule.IO.Torn != nil && len(p.rule.IO.Errors) > 0 { // these two may; it is the third one
		for _, w := range outcomes {
			if w.name != "torn" && w.name != "error" {
				first, second = p.seen["torn"], w
			}
		}
	}
	return p.at(max(first.at, second.at), "use a rule for each; of two that fire on an operation the first one settles it", "%s and %s cannot stand together", first.name, second.name)
}

func (p *ruleParser) checkOps() *SyntaxError {
	io := p.rule.IO
	switch {
	case len(p.ops) > 0:
		return p.narrow()
	case io.Space != nil:
		io.Ops = opsSpace & io.fitting()
	case io.Attr != nil:
		io.Ops = opsAttr & io.fitting()
	default:
		return p.at(p.end(), "add op=read, or another operation or group (data, meta, sync, all)", "op is missing")
	}
	if io.Ops == 0 {
		return p.unfit()
	}
	return nil
}

// unfit is for an action that says its operations itself, with a field that means nothing for any of them.
func (p *ruleParser) unfit() *SyntaxError {
	fits := p.rule.IO.fits()
	action := fits[0]
	for _, t := range fits[1:] {
		if w, ok := p.seen[t.field]; ok && t.ops&action.ops == 0 {
			return p.at(w.at, "leave it out", "%s and %s cannot stand together: there is no operation for which both mean something", action.field, t.field)
		}
	}
	return p.at(p.end(), "leave a field out", "there is no operation for which all fields of the rule mean something")
}

func (p *ruleParser) checkPath() *SyntaxError {
	io := p.rule.IO
	if io.Path != "" {
		return nil
	}
	if p.defaults.Path == "" {
		return p.at(p.end(), "add path=/data/**", "path is missing")
	}
	canonical, _, err := checkGlob(p.defaults.Path)
	if err != nil {
		return p.whole(err.fix, "the default path %q: %s", p.defaults.Path, err.message)
	}
	io.Path = canonical
	return nil
}

func (p *ruleParser) checkTrigger() *SyntaxError {
	if nth, ok := p.seen["nth"]; ok {
		for _, name := range []string{"after", "every", "times", "p"} {
			if other, also := p.seen[name]; also {
				return p.at(max(nth.at, other.at), "nth=N is after=N-1 times=1: write it that way to combine it",
					"nth and %s cannot stand together", name)
			}
		}
	}
	active, pulses := p.seen["active"]
	idle, rests := p.seen["idle"]
	switch {
	case pulses && !rests:
		return p.at(active.at, "add idle, how long the rule rests between two pulses", "active without idle")
	case rests && !pulses:
		return p.at(idle.at, "add active, how long each pulse is", "idle without active")
	}
	w, ok := p.seen["afterBytes"]
	switch {
	case ok && p.rule.IO.Space != nil:
		return p.at(w.at, "add those bytes to nospace or quota", "afterBytes cannot stand with what counts bytes itself")
	case ok && p.rule.IO.Ops&OpsMoving == 0:
		return p.at(w.at, "add one of "+OpsMoving.list()+" to op, or use after", "afterBytes counts the bytes of reads and writes: the rule has neither")
	}
	return nil
}

// checkTimes compares times with how long the rule lives.
func (p *ruleParser) checkTimes() *SyntaxError {
	const fix = "shorten it, or give the rule a longer ttl"
	ttl := p.rule.Trigger.TTL
	if w, ok := p.seen["latency"]; ok {
		l := p.rule.IO.Latency
		wait, what := l.Base, "a latency of"
		switch l.Kind {
		case Uniform:
			wait += l.Spread
		case Normal, Exp:
			what = "a mean latency of"
		}
		if wait > ttl {
			return p.at(w.value.at(0), fix, "%s %v is longer than the rule lives (ttl %v)", what, wait, ttl)
		}
		if c, ok := p.seen["cap"]; ok && l.Cap > ttl {
			return p.at(c.value.at(0), fix, "a cap of %v is longer than the rule lives (ttl %v)", l.Cap, ttl)
		}
	}
	if w, ok := p.seen["delay"]; ok && p.rule.Trigger.Delay >= ttl {
		return p.at(w.value.at(0), fix, "a delay of %v is not shorter than the rule lives (ttl %v): it would never act", p.rule.Trigger.Delay, ttl)
	}
	return nil
}
