package policy

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

var (
	decimal      = regexp.MustCompile(`^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$`)
	plainDecimal = regexp.MustCompile(`^[0-9]*\.?[0-9]+$`)
)

func (p *ruleParser) probability(w word) *SyntaxError {
	const fix = "write a share such as 5% or 0.05"
	v, at := w.value.text, w.value.at(0)
	number, percent := strings.CutSuffix(v, "%")
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case strings.HasPrefix(number, "-") && err == nil:
		return p.at(at, fix, "p=%s is below 0", v)
	case !decimal.MatchString(number):
		return p.at(at, fix, "p=%s is not a probability", v)
	}
	if percent {
		f /= 100
	}
	switch {
	case err != nil || f > 1 && percent:
		return p.at(at, fix, "p=%s is above 100%%", v)
	case f > 1 && f <= 100:
		return p.at(at, "did you mean "+v+"%?", "p=%s is above 1", v)
	case f > 1:
		return p.at(at, fix, "p=%s is above 1", v)
	case f == 0 && significant(number):
		return p.at(at, "use a larger one", "p=%s is too small to be told from 0", v)
	}
	p.rule.Trigger.P = f
	return nil
}

// significant reports whether a decimal has a digit other than 0 before its exponent.
func significant(number string) bool {
	digits, _, _ := strings.Cut(strings.ToLower(number), "e")
	return strings.ContainsAny(digits, "123456789")
}

// uint reads a whole number, with the least one that makes sense.
func (p *ruleParser) uint(w word, least uint64) (uint64, *SyntaxError) {
	v, at := w.value.text, w.value.at(0)
	n, err := strconv.ParseUint(v, 10, 64)
	switch {
	case err != nil && strings.Trim(v, "0123456789") == "":
		return 0, p.at(at, "the largest is "+strconv.FormatUint(math.MaxUint64, 10), "%s=%s is too large", w.name, v)
	case err != nil && strings.HasPrefix(v, "-"):
		return 0, p.at(at, "write a whole number from "+strconv.FormatUint(least, 10), "%s=%s is negative", w.name, v)
	case err != nil:
		return 0, p.at(at, digitsFix, "%s=%s is not a whole number", w.name, v)
	case n < least:
		return 0, p.at(at, "the least is "+strconv.FormatUint(least, 10)+"; leave the field out for no limit", "%s=%s makes no sense", w.name, v)
	}
	return n, nil
}

func (p *ruleParser) count(w word) *SyntaxError {
	least := uint64(1)
	if w.name == "after" {
		least = 0
	}
	n, err := p.uint(w, least)
	if err != nil {
		return err
	}
	t := &p.rule.Trigger
	switch w.name {
	case "after":
		t.After = n
	case "every":
		t.Every = n
	case "times":
		t.Times = n
	case "nth":
		t.After, t.Times = n-1, 1
	}
	return nil
}

func (p *ruleParser) afterBytes(w word) *SyntaxError {
	n, err := p.size(w.value, 1)
	if err == nil && n == math.MaxInt64 {
		return p.at(w.value.at(0), "use a smaller one", "afterBytes=%s is more than any file has", w.value.text)
	}
	p.rule.Trigger.AfterBytes = uint64(n)
	return err
}

// window reads delay, active or idle.
func (p *ruleParser) window(w word) *SyntaxError {
	d, err := p.duration(w.value, w.name, false)
	t := &p.rule.Trigger
	switch w.name {
	case "delay":
		t.Delay = d
	case "active":
		t.Active = d
	case "idle":
		t.Idle = d
	}
	return err
}

func (p *ruleParser) seed(w word) *SyntaxError {
	n, err := p.uint(w, 0)
	p.rule.Trigger.Seed, p.rule.Trigger.Seeded = n, true
	return err
}

func (p *ruleParser) ttl(w word) *SyntaxError {
	d, err := p.duration(w.value, w.name, false)
	if err != nil {
		return err
	}
	if limit := p.defaults.maxTTL(); d > limit {
		fix := "the limit is " + limit.String()
		if from := p.defaults.MaxTTLFrom; from != "" {
			fix += " (" + from + ")"
		}
		return p.at(w.value.at(0), fix, "ttl=%s is longer than this node allows", w.value.text)
	}
	p.rule.Trigger.TTL = d
	return nil
}
