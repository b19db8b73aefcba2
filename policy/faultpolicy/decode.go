package faultpolicy

import (
	"strconv"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// Decode reads a text of one or more FaultPolicies, and gives them checked and
// with their defaults. How long a ttl may be is up to the node. The error is strictyaml.Errors.
func Decode(file string, data []byte) ([]FaultPolicy, error) {
	docs, err := strictyaml.Read(file, data)
	if err != nil {
		return nil, err
	}
	var all []FaultPolicy
	var errs strictyaml.Errors
	for _, doc := range docs {
		p, err := FromDocument(doc, unbounded)
		errs = append(errs, err...)
		if err == nil {
			all = append(all, p)
		}
	}
	return all, errs.OrNil()
}

// FromDocument reads the one policy of a document, and checks it against the
// node's defaults and limits.
func FromDocument(doc *strictyaml.Document, d policy.Defaults) (FaultPolicy, strictyaml.Errors) {
	var p FaultPolicy
	if err := doc.Decode(&p); err != nil {
		return FaultPolicy{}, asErrors(err)
	}
	p.SetDefaults()
	found := p.check(d)
	found = append(found, zeros(doc)...)
	if len(found) > 0 {
		return FaultPolicy{}, found.errors(doc)
	}
	return p, nil
}

func asErrors(err error) strictyaml.Errors {
	if errs, ok := err.(strictyaml.Errors); ok {
		return errs
	}
	return strictyaml.Errors{{Message: err.Error()}}
}

// RuleError gives the error of a rule's predicate, which package kernel finds,
// its place in the policy: wrong is about the rule of fault i.
func (p *FaultPolicy) RuleError(doc *strictyaml.Document, i int, wrong *policy.SyntaxError) *strictyaml.Error {
	return problems{p.predicate(i, wrong)}.errors(doc)[0]
}

// zeros refuses numbers that are given as 0, which is what they are when they are left out: no limit.
func zeros(doc *strictyaml.Document) (found problems) {
	for _, path := range []string{"spec.value", "spec.guard.maxContainers", "spec.guard.maxPercent", "spec.guard.maxHits"} {
		if text, ok := doc.Text(path); ok {
			if n, err := strconv.Atoi(text); err == nil && n == 0 {
				found.add(path, "0 makes no sense", "write a number from 1, or leave it out")
			}
		}
	}
	return found
}

// SetDefaults fills in what is left out, but for the seed and the ttl, which
// are the node's to give.
func (p *FaultPolicy) SetDefaults() {
	s := &p.Spec
	if s.Mode == "" {
		s.Mode = ModeAll
	}
	if s.WhenNothingMatches == "" {
		s.WhenNothingMatches = Wait
	}
	if s.Timing.Schedule != "" {
		if s.Timing.TimeZone == "" {
			s.Timing.TimeZone = "UTC"
		}
		if s.Timing.Concurrency == "" {
			s.Timing.Concurrency = Forbid
		}
	}
	for i := range s.Guard.StopConditions {
		c := &s.Guard.StopConditions[i]
		if c.Name == "" {
			c.Name = "condition-" + strconv.Itoa(i+1)
		}
		if c.HTTP != nil && len(c.HTTP.Status) == 0 {
			c.HTTP.Status = []int{200}
		}
		if c.Interval == 0 {
			c.Interval = DefaultInterval
		}
		if c.Timeout == 0 {
			c.Timeout = min(DefaultTimeout, c.Interval)
		}
		if c.FailureThreshold == 0 {
			c.FailureThreshold = 1
		}
	}
}
