package policy

import (
	"regexp"
	"slices"
	"time"
)

// Limits and defaults of one rule.
const (
	// MaxRuleLength is the length of a rule's text, in bytes.
	MaxRuleLength = 4096
	// MaxExcludes is how many globs `exclude` may list.
	MaxExcludes = 16
	// MaxNameLength is the length of a rule's name (a DNS label, RFC 1123).
	MaxNameLength = 63
	// DefaultTTL is how long a rule lives that does not say.
	DefaultTTL = 10 * time.Minute
	// DefaultMaxTTL is the longest ttl that a rule can ask for where the node does not say.
	DefaultMaxTTL = 24 * time.Hour
)

// Defaults fill what the text of a rule leaves out, and bound what it asks for.
type Defaults struct {
	// Path is the glob of a rule without path=, such as "/data/**". Empty:
	// each rule has to give its own. See EscapeGlob for paths of users.
	Path string
	// TTL is the ttl of a rule without one; 0 means DefaultTTL. A TTL above
	// MaxTTL is cut to it.
	TTL time.Duration
	// MaxTTL is the longest ttl allowed; 0 means DefaultMaxTTL.
	MaxTTL time.Duration
	// MaxTTLFrom says where MaxTTL is set, for errors; may be empty.
	MaxTTLFrom string
}

func (d Defaults) maxTTL() time.Duration {
	if d.MaxTTL <= 0 {
		return DefaultMaxTTL
	}
	return d.MaxTTL
}

func (d Defaults) ttl() time.Duration {
	if d.TTL <= 0 {
		return min(DefaultTTL, d.maxTTL())
	}
	return min(d.TTL, d.maxTTL())
}

// ParseRule parses the text of one rule, such as
//
//	io error=EIO op=fsync+write path=/data/** p=5% times=10 ttl=5m
//	kernel hook=slab error=ENOMEM within=ext4_file_write_iter times=10 ttl=60s
//
// name is the rule's name; docs/rules.md describes the language. The error is
// a *SyntaxError. The rule has no seed unless the text gives one; see
// Rule.EnsureSeed.
func ParseRule(name, text string, d Defaults) (Rule, error) {
	p, err := parse(source{name: "rule", text: text}, name, d)
	if err != nil {
		return Rule{}, err
	}
	return p.rule, nil
}

var ruleName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// parse gives the parser with its rule, and the concrete error type; see
// ParseRule for callers outside.
func parse(src source, name string, d Defaults) (*ruleParser, *SyntaxError) {
	if len(name) > MaxNameLength || !ruleName.MatchString(name) {
		return nil, src.whole("use up to 63 lower-case letters, digits and inner hyphens", "%q is not a name for a rule", name)
	}
	if len(src.text) > MaxRuleLength {
		return nil, src.whole("split it into several rules", "the rule is %d bytes long, the limit is %d", len(src.text), MaxRuleLength)
	}
	words, err := src.lex()
	if err != nil {
		return nil, err
	}
	if len(words) == 0 {
		return nil, src.at(0, "write for instance: io error=EIO op=fsync path=/data/**", "the rule is empty")
	}
	lang, err := src.kindOf(words[0])
	if err != nil {
		return nil, err
	}
	p := &ruleParser{source: src, language: lang, defaults: d, seen: make(map[string]word)}
	p.rule = Rule{Name: name, Text: src.text, Trigger: Trigger{P: 1, TTL: d.ttl()}}
	lang.begin(&p.rule)
	for _, w := range words[1:] {
		if err := p.field(w); err != nil {
			return nil, err
		}
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	return p, nil
}

// kindOf reads the first word, which says what kind of fault it is.
func (s source) kindOf(w word) (*language, *SyntaxError) {
	const example = "start the rule with io or kernel, such as: io error=EIO op=fsync path=/data/**"
	switch {
	case w.name == "io" && w.bare:
		return &ioRules, nil
	case w.name == "kernel" && w.bare:
		return &kernelRules, nil
	case !w.bare && slices.Contains(ioRules.fields, w.name):
		return nil, s.at(w.at, example, "the kind of fault is missing before %q", w.name)
	case !w.bare && slices.Contains(kernelRules.fields, w.name):
		return nil, s.at(w.at, "start the rule with kernel, such as: kernel hook=syscall:mount error=ENOMEM", "the kind of fault is missing before %q", w.name)
	}
	return nil, s.at(w.at, suggest(w.name, []string{"io", "kernel"}, example), "unknown kind of fault %q", w.name)
}
