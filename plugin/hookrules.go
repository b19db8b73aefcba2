package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faultgraft/faultgraft/policy"
)

// HookRuleFlag is the argument of `faultgraft hook poststart` before a rule,
// which is NAME=RULE. A CDI device brings its rules so.
const HookRuleFlag = "--rule"

// specMetadata reads what a container's OCI configuration says to faultgraft:
// annotations (nerdctl keeps what --annotation gives nowhere else), and the rules
// of CDI devices, both by their keys.
func specMetadata(spec []byte) (annotations, devices map[string]string, err error) {
	if !bytes.Contains(spec, []byte(policy.Domain)) && !bytes.Contains(spec, []byte(HookRuleFlag)) {
		return nil, nil, nil // most containers: not worth parsing
	}
	// Nothing else of it is looked at, so that a later version of the rest does no harm.
	var form struct {
		Annotations map[string]string `json:"annotations"`
		Hooks       struct {
			Poststart []specs.Hook `json:"poststart"`
		} `json:"hooks"`
	}
	if err := json.Unmarshal(spec, &form); err != nil {
		return nil, nil, fmt.Errorf("its OCI configuration: %w", err)
	}
	annotations = form.Annotations
	maps.DeleteFunc(annotations, func(k, _ string) bool { return !hasRules(map[string]string{k: ""}) })
	devices = map[string]string{}
	for _, h := range form.Hooks.Poststart {
		maps.Copy(devices, HookRules(h.Args))
	}
	return annotations, devices, nil
}

// HookRules are the rules in the arguments of a hook, if it is faultgraft's, by
// the keys that annotations with them would have.
func HookRules(args []string) map[string]string {
	out := map[string]string{}
	i := slices.Index(args, "hook")
	if i < 1 || !strings.Contains(args[0], "faultgraft") {
		return out
	}
	for i++; i < len(args); i++ {
		text, joined := strings.CutPrefix(args[i], HookRuleFlag+"=")
		if !joined {
			if args[i] != HookRuleFlag || i+1 == len(args) {
				continue
			}
			i++
			text = args[i]
		}
		if name, rule, ok := strings.Cut(text, "="); ok {
			out[name+domain] = rule
		}
	}
	return out
}
