package policy

import "time"

// ParseDuration reads a time above 0 as rules write it, such as 100ms or 1m30s.
// The error is a *SyntaxError; its column is that in text.
func ParseDuration(text string) (time.Duration, error) {
	p := &ruleParser{source: source{name: "time", text: text}}
	from := make([]int, len(text)+1)
	for i := range from {
		from[i] = i
	}
	d, err := p.duration(value{text: text, from: from}, "time", false)
	if err != nil {
		return 0, err
	}
	return d, nil
}

// Suggest gives "did you mean X?" for the nearest of the known words, or
// otherwise when nothing is near.
func Suggest(word string, known []string, otherwise string) string {
	return suggest(word, known, otherwise)
}

// IsName reports whether a rule can have this name (a DNS label, RFC 1123).
func IsName(name string) bool { return len(name) <= MaxNameLength && ruleName.MatchString(name) }
