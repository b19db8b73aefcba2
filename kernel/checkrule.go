package kernel

import (
	"errors"

	"github.com/cilium/ebpf/btf"
	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/policy"
)

// checkSyntax checks what needs no kernel: how the predicates are written.
func checkSyntax(rule policy.Rule) error {
	for which := inWhere; which < len(rule.Kernel.Within); which++ {
		text := rule.Kernel.Where
		if which != inWhere {
			text = rule.Kernel.Within[which].Predicate
		}
		if text == "" {
			continue
		}
		if _, err := predicate.Parse(text); err != nil {
			return predicateError(rule, which, err)
		}
	}
	return nil
}

// checkTypes is for a rule that this kernel cannot carry out: what it says of
// functions that are here is checked all the same, so that a rule can be written
// on another machine than it is for. What cannot be looked at is not judged.
func checkTypes(spec *btf.Spec, rule policy.Rule, all []way) error {
	for _, w := range all {
		_, err := newFilters(spec, rule, w)
		var wrong *policy.SyntaxError
		if errors.As(err, &wrong) {
			return wrong
		}
		if err == nil {
			return nil
		}
	}
	return nil
}
