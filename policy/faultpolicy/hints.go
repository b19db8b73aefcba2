package faultpolicy

// What other tools, and other levels of a policy, call a field.

// FieldHints is strictyaml.Hinter's.
func (Spec) FieldHints() map[string]string {
	const timing, guard = "it is a field of timing", "it is a field of guard"
	return map[string]string{
		"duration": "did you mean timing: {ttl: ...}?", "ttl": timing, "delay": timing, "active": timing, "idle": timing, "schedule": timing, "timezone": timing, "concurrency": timing,
		"maxcontainers": guard, "maxpercent": guard, "maxhits": guard, "stopconditions": guard, "scheduler": "did you mean timing: {schedule: ...}?",
		"io": "it is a field of a fault: faults: [{name: NAME, io: {...}}]", "kernel": "it is a field of a fault: faults: [{name: NAME, kernel: {...}}]",
		"rules": "did you mean faults?", "matchlabels": "it is a field of selector",
	}
}

// FieldHints is strictyaml.Hinter's.
func (Metadata) FieldHints() map[string]string {
	return map[string]string{"namespace": "leave it out: a policy is the node's; spec.selector has podNamespaces and namespaces"}
}

// FieldHints is strictyaml.Hinter's.
func (Selector) FieldHints() map[string]string {
	return map[string]string{
		"labels": "did you mean matchLabels?", "labelselectors": "did you mean podSelector: {matchLabels: ...}?", "annotations": "did you mean matchAnnotations?",
		"image": "did you mean images?", "container": "did you mean containerNames?", "names": "did you mean containerNames?", "namespace": "did you mean namespaces?",
	}
}

// FieldHints is strictyaml.Hinter's.
func (IO) FieldHints() map[string]string {
	h := map[string]string{
		"op": "did you mean ops?", "methods": "did you mean ops?", "errno": "did you mean error?", "delay": "did you mean latency? The delay before a fault begins is a field of trigger",
		"percent": "write trigger: {p: 50%} next to io", "volumepath": "did you mean path?",
	}
	return triggers(h, "io")
}

// FieldHints is strictyaml.Hinter's.
func (Kernel) FieldHints() map[string]string {
	h := map[string]string{
		"predicate": "did you mean where?", "callchain": "did you mean within?", "errno": "did you mean error?", "failtype": "did you mean hook?", "probability": "write trigger: {p: 50%} next to kernel",
	}
	return triggers(h, "kernel")
}

// FieldHints is strictyaml.Hinter's.
func (Frame) FieldHints() map[string]string {
	return map[string]string{"predicate": "did you mean where?", "funcname": "did you mean func?", "function": "did you mean func?", "name": "did you mean func?"}
}

// triggers adds the fields of Trigger, whose place is next to a fault's kind.
func triggers(hints map[string]string, kind string) map[string]string {
	for _, name := range []string{"p", "after", "every", "times", "nth", "afterbytes", "active", "idle", "ttl", "seed"} {
		hints[name] = "it is a field of trigger, next to " + kind
	}
	return hints
}
