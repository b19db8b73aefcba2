package policy

import (
	"regexp"
	"strings"
)

// MaxFrames is how many functions a call chain may name. What watches it keeps
// a mark for each of them and each thread (kernel/chain).
const MaxFrames = 8

// cParameters is how a parameter list in C begins, and no predicate.
var cParameters = regexp.MustCompile(`^(const|struct|union|enum|unsigned|signed|int|long|short|char|void)\s+[A-Za-z_*]`)

// within reads a call chain: FUNCTION, FUNCTION(PREDICATE) or
// FUNCTION(PARAMETERS)(PREDICATE), the outermost first.
func (p *ruleParser) within(w word) *SyntaxError {
	items, err := p.items(w.value)
	if err != nil {
		return err
	}
	for i, item := range items {
		if i == MaxFrames {
			return p.at(item.trim().at(0), "leave out those in the middle: they need not call each other directly", "the call chain has more than %d functions", MaxFrames)
		}
		frame, predicate, err := p.frame(item.trim())
		if err != nil {
			return err
		}
		p.rule.Kernel.Within = append(p.rule.Kernel.Within, frame)
		p.frames = append(p.frames, predicate)
	}
	return nil
}

func (p *ruleParser) frame(v value) (Frame, value, *SyntaxError) {
	open := strings.IndexByte(v.text, '(')
	if open < 0 {
		open = len(v.text)
	}
	name := v.part(0, open).trim()
	if err := p.frameName(name); err != nil {
		return Frame{}, value{}, err
	}
	var groups []value
	for i := open; i < len(v.text); {
		switch {
		case isBlank(v.text[i]):
			i++
		case v.text[i] != '(':
			return Frame{}, value{}, p.at(v.at(i), "part the functions by commas", "%q after )", v.text[i:])
		case len(groups) == 2:
			return Frame{}, value{}, p.at(v.at(i), "write FUNCTION(PREDICATE), parts of which are joined by &&", "a third pair of parentheses after %s", name.text)
		default:
			inner, end, err := p.group(v, i)
			if err != nil {
				return Frame{}, value{}, err
			}
			groups, i = append(groups, inner), end
		}
	}
	f := Frame{Function: name.text}
	predicate := v.part(len(v.text), len(v.text))
	switch len(groups) {
	case 1:
		predicate = groups[0]
		if cParameters.MatchString(predicate.text) {
			return Frame{}, value{}, p.at(predicate.at(0), "leave it out: a predicate can use the parameters of "+name.text+" by their names; or write "+name.text+"(PARAMETERS)(PREDICATE)",
				"a parameter list where a predicate should be")
		}
	case 2:
		f.Parameters, predicate = groups[0].text, groups[1]
	}
	f.Predicate = predicate.text
	return f, predicate, nil
}

func (p *ruleParser) frameName(v value) *SyntaxError {
	kind, name, _ := strings.Cut(v.text, ":")
	switch symbol := syscallSymbol.FindStringSubmatch(v.text); {
	case v.text == "":
		return p.at(v.at(0), "write within=OUTER,INNER without blanks around the comma", "a function is missing in the call chain")
	case kind == "syscall" && identifier.MatchString(name):
		return p.at(v.at(0), "write the function behind it, __x64_sys_"+name+" or __arm64_sys_"+name, "a call chain is made of functions, not of hook points")
	case kind == "function" && identifier.MatchString(name):
		return p.at(v.at(0), "did you mean "+name+"?", "a call chain is made of functions, not of hook points")
	case symbol != nil && !strings.HasPrefix(v.text, "__"):
		return p.at(v.at(0), "did you mean __x64_sys_"+symbol[1]+" or __arm64_sys_"+symbol[1]+"?", "no kernel since 4.17 has the function %s", v.text)
	case guarded[v.text] != "":
		return p.at(v.at(0), "leave it out, and write hook="+guarded[v.text], "%s is what fails, not a function around it", v.text)
	}
	return p.identifier(v, "the function")
}
