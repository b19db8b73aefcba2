package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestCombinations goes through all pairs of actions: which may stand together,
// and that the others are refused at the second of them.
func TestCombinations(t *testing.T) {
	actions := map[string]string{
		"throttle": "throttle=1ops/s", "latency": "latency=1s", "hang": "hang",
		"error": "error=EIO", "short": "short=1", "corrupt": "corrupt=zero", "torn": "torn=prefix", "lost": "lost",
		"nospace": "nospace=0", "quota": "quota=0", "attr": "attr=size:0",
	}
	ops := map[string]string{"attr": ""}
	waits := func(name string) bool { return name == "throttle" || name == "latency" || name == "hang" }
	for a, textA := range actions {
		for b, textB := range actions {
			if a == b {
				continue
			}
			op := " op=write"
			for _, name := range []string{a, b} {
				if o, ok := ops[name]; ok {
					op = o
				}
			}
			text := "io path=/d " + textA + " " + textB + op
			r, err := ParseRule("r", text, Defaults{})
			full := func(name string) bool { return name == "nospace" || name == "quota" }
			if waits(a) && full(b) || full(a) && waits(b) {
				checkRefused(t, "io path=/d "+textA+" ^"+textB+op, "cannot stand together", "write a rule of its own for the wait")
				continue
			}
			if waits(a) || waits(b) || a == "torn" && b == "error" || a == "error" && b == "torn" {
				if err != nil {
					t.Errorf("%s: %v", text, err)
				} else {
					checkRoundTrip(t, r)
				}
				continue
			}
			at := "io path=/d " + textA + " ^" + textB + op
			checkRefused(t, at, a+" and "+b+" cannot stand together", "use a rule for each")
		}
	}
	checkRefused(t, "io path=/d op=write torn=prefix error=EIO ^lost", "torn and lost cannot stand together", "")
	checkRefused(t, "io path=/d op=write short=1 error=EIO ^torn=prefix", "torn and short cannot stand together", "")
}

// TestActionsAndOps goes through all actions and operations: an operation that
// is named is taken or refused, and a group gives exactly those that are taken.
func TestActionsAndOps(t *testing.T) {
	for text, want := range map[string]OpSet{
		"error=EIO": GroupAll &^ opsReleasing, "latency=1s": GroupAll, "hang": GroupAll, "throttle=1ops/s": GroupAll, "throttle=1MiB/s": OpsMoving,
		"short=1": opsShort, "corrupt=zero": opsCorrupt, "torn=prefix": opsTorn, "torn=prefix error=EIO": opsTorn, "lost": opsLost,
		"nospace=0": opsSpace, "quota=0": opsSpace, "attr=size:0": opsAttr,
		"latency=1s comm=a": opsCalled, "latency=1s exe=/a": opsCalled, "latency=1s uid=0": opsCalled, "latency=1s pid=1": opsCalled,
		"latency=1s offset=0-": OpsPlaced, "latency=1s size=0-": OpsSized, "short=1 comm=a offset=0": opsShort, "lost uid=0": opsLost &^ setOf(OpMmapWrite),
	} {
		for _, o := range GroupAll.Ops() {
			r, err := ParseRule("r", "io path=/d "+text+" op="+o.String(), Defaults{})
			switch {
			case want.Has(o) && (err != nil || r.IO.Ops != setOf(o)):
				t.Errorf("%s op=%v: %v, %v", text, o, r, err)
			case !want.Has(o) && err == nil:
				t.Errorf("%s op=%v means nothing and was taken: %v", text, o, r)
			case !want.Has(o) && !strings.Contains(err.Error(), "means nothing for "+o.String()) && !strings.Contains(err.Error(), o.String()+" cannot fail"):
				t.Errorf("%s op=%v: %v", text, o, err)
			}
		}
		for name, group := range groups {
			r, err := ParseRule("r", "io path=/d "+text+" op="+name, Defaults{})
			switch {
			case group&want == 0 && err == nil:
				t.Errorf("%s op=%s means nothing and was taken: %v", text, name, r)
			case group&want != 0 && (err != nil || r.IO.Ops != group&want):
				t.Errorf("%s op=%s: %v, %v, want %v", text, name, r, err, group&want)
			case err == nil:
				checkRoundTrip(t, r)
			}
		}
	}
	checkRefused(t, "io path=/d short=1 op=^meta", "short means nothing for meta", "")
	checkRefused(t, "io path=/d lost offset=0- op=^sync", "offset means nothing for sync", "")
}

// TestHints shows that what a wrong word is answered with is a word of the language.
func TestHints(t *testing.T) {
	check := func(what string, hints map[string]string, known []string) {
		for wrong, hint := range hints {
			if slices.Contains(known, wrong) {
				t.Errorf("%s: %s needs no hint, there is one of that name", what, wrong)
			}
			for _, word := range strings.FieldsFunc(strings.ReplaceAll(hint, " or ", ","), func(r rune) bool { return r == ',' || r == ' ' }) {
				name, _, _ := strings.Cut(word, "=")
				if !slices.Contains(known, name) && !strings.ContainsAny(word, "()") {
					t.Errorf("%s: the hint %q for %s has no known %q", what, hint, wrong, name)
				}
			}
		}
	}
	check("field", fieldHints, fieldNames)
	check("kernel field", kernelHints, kernelRules.fields)
	check("attribute", attrHints, attrNames)
	for wrong, hint := range opHints {
		first, _, _ := strings.Cut(hint, " ")
		if _, ok := opsNamed(first); !ok && first != "no" {
			t.Errorf("the hint %q for the operation %s is none", hint, wrong)
		}
		if _, ok := opsNamed(wrong); ok && hint != wrong {
			t.Errorf("the operation %s needs no hint", wrong)
		}
	}
	for name, example := range exampleCalls {
		if !strings.HasPrefix(example, name+"(") {
			t.Errorf("the example %s for %s", example, name)
		}
	}
}
