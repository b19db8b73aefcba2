package policy

import (
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// sizeUnits are the units of a size as coreutils has them (dd, truncate, split)
// and, for KiB and above, Kubernetes.
var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	"k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}

// unitNames are those that a wrong unit is compared with.
var unitNames = []string{"KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"}

const (
	sizeFix   = "write bytes, or for instance 4KiB or 1.5MiB (B, KiB, MiB, GiB, TiB; K, M, G and T are the same, kB and MB are powers of 1000)"
	digitsFix = "write digits only"
	bitsFix   = "sizes are in bytes: 8Mbit are 1MB"
)

var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)([^0-9.].*)?$`)

// size reads a number of bytes.
func (p *ruleParser) size(v value, least int64) (int64, *SyntaxError) {
	m := sizeForm.FindStringSubmatchIndex(v.text)
	if m == nil {
		if strings.HasPrefix(v.text, "-") {
			return 0, p.at(v.at(0), sizeFix, "the size %s is negative", v.text)
		}
		return 0, p.at(v.at(0), sizeFix, "%q is not a size", v.text)
	}
	unit := ""
	if m[4] >= 0 {
		unit = v.text[m[4]:]
	}
	factor, known := sizeUnits[unit]
	if !known {
		return 0, p.at(v.at(m[4]), unitFix(unit), "%q is not a unit of size", unit)
	}
	n, _ := new(big.Rat).SetString(v.text[m[2]:m[3]])
	n.Mul(n, new(big.Rat).SetInt64(factor))
	switch {
	case !n.IsInt():
		return 0, p.at(v.at(0), "write a whole number of bytes", "%s is not a whole number of bytes", v.text)
	case !n.Num().IsInt64():
		return 0, p.at(v.at(0), "the largest is "+sizeText(math.MaxInt64)+" bytes", "the size %s is too large", v.text)
	case n.Num().Int64() < least:
		return 0, p.at(v.at(0), "the least is "+sizeText(least), "a size of %s makes no sense here", v.text)
	}
	return n.Num().Int64(), nil
}

// unitFix says what to write in place of a wrong unit.
func unitFix(unit string) string {
	bits := strings.Contains(strings.ToLower(unit), "bit") || len(unit) == 2 && unit[1] == 'b'
	switch {
	case bits:
		return bitsFix
	case unit == "/s" || strings.HasSuffix(unit, "B/s"):
		return "leave /s out: this is a size, not a rate"
	case strings.EqualFold(unit, "b"):
		return "did you mean B?"
	case len(unit) == 1 && strings.Contains("mgt", unit):
		return "did you mean " + strings.ToUpper(unit) + "iB?"
	}
	return suggest(unit, unitNames, sizeFix)
}

// sizeText writes a size with the largest unit that divides it.
func sizeText(n int64) string {
	for _, u := range [...]string{"TiB", "GiB", "MiB", "KiB"} {
		if f := sizeUnits[u]; n > 0 && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + u
		}
	}
	return strconv.FormatInt(n, 10)
}

// number reads a whole number; what names it in errors.
func (p *ruleParser) number(v value, what string, least, most uint64) (uint64, *SyntaxError) {
	n, err := strconv.ParseUint(v.text, 10, 64)
	switch {
	case v.text == "" || err != nil && strings.Trim(v.text, "0123456789") != "":
		return 0, p.at(v.at(0), digitsFix, "%s %q is not a whole number", what, v.text)
	case err != nil || n > most:
		return 0, p.at(v.at(0), "the largest is "+strconv.FormatUint(most, 10), "%s %s is too large", what, v.text)
	case n < least:
		return 0, p.at(v.at(0), "the least is "+strconv.FormatUint(least, 10), "%s %s makes no sense", what, v.text)
	}
	return n, nil
}

// ratio reads a decimal above 0; what names it in errors.
func (p *ruleParser) ratio(v value, what, fix string) (float64, *SyntaxError) {
	f, err := strconv.ParseFloat(v.text, 64)
	switch {
	case !decimal.MatchString(v.text):
		return 0, p.at(v.at(0), fix, "%s %q is not a number", what, v.text)
	case err != nil:
		return 0, p.at(v.at(0), fix, "%s %s is too large", what, v.text)
	case f == 0:
		return 0, p.at(v.at(0), fix, "%s %s makes no sense: it must be above 0", what, v.text)
	}
	return f, nil
}

// span reads N, N-M or N-, with both ends included; most is the end of an open one.
func (p *ruleParser) span(v value, bound func(value) (uint64, *SyntaxError), most uint64) (Range, *SyntaxError) {
	dash := strings.IndexByte(v.text, '-')
	if dash == 0 {
		return Range{}, p.at(v.at(0), "begin the range with a number, such as 0"+v.text, "the range %q has no start", v.text)
	}
	if dash < 0 {
		n, err := bound(v)
		return Range{n, n}, err
	}
	from, err := bound(v.part(0, dash))
	if err != nil || dash == len(v.text)-1 {
		return Range{from, most}, err
	}
	to, err := bound(v.part(dash+1, len(v.text)))
	if err != nil {
		return Range{}, err
	}
	if to < from {
		return Range{}, p.at(v.at(0), "write the smaller number first", "the range %s is backwards", v.text)
	}
	return Range{from, to}, nil
}

// duration reads a Go duration above 0, or from 0.
func (p *ruleParser) duration(v value, name string, zero bool) (time.Duration, *SyntaxError) {
	at := v.at(0)
	d, err := time.ParseDuration(v.text)
	switch {
	case v.text != "" && err != nil && strings.Trim(v.text, "0123456789.") == "":
		return 0, p.at(at, "did you mean "+v.text+"s? (units: ns, us, ms, s, m, h)", "%s=%s has no unit", name, v.text)
	case err != nil:
		return 0, p.at(at, "write for instance 100ms, 5s, 1m30s or 2h (up to 292 years)", "%s=%s is not a duration", name, v.text)
	case d < 0:
		return 0, p.at(at, "write a time above 0", "%s=%s is negative", name, v.text)
	case d == 0 && !zero:
		return 0, p.at(at, "write a time above 0, or leave the field out", "%s=%s makes no sense", name, v.text)
	}
	return d, nil
}

// call takes NAME or NAME(ARGUMENT,...) apart; args is nil without parentheses.
func (p *ruleParser) call(v value) (name value, args []value, err *SyntaxError) {
	open := strings.IndexByte(v.text, '(')
	if open < 0 {
		return v, nil, nil
	}
	closed := strings.IndexByte(v.text, ')')
	switch {
	case closed < open:
		return v, nil, p.at(v.at(open), "close it with ), and leave blanks out", "( without )")
	case closed != len(v.text)-1:
		return v, nil, p.at(v.at(closed+1), "leave it out", "%q after )", v.text[closed+1:])
	}
	for _, a := range v.part(open+1, closed).split(",") {
		a = a.trim()
		if a.text == "" {
			return v, nil, p.at(a.at(0), "write for instance "+exampleCalls[v.text[:open]], "a value is missing in %q", v.text)
		}
		args = append(args, a)
	}
	return v.part(0, open), args, nil
}

// exampleCalls show how to write what takes values in parentheses.
var exampleCalls = map[string]string{
	"uniform": "uniform(10ms,50ms)", "normal": "normal(20ms,5ms)", "exp": "exp(20ms)", "pareto": "pareto(10ms,1.5)",
	"bitflip": "bitflip(4)", "zero": "zero(4,16)", "random": "random(4,16)", "prefix": "prefix(4KiB)", "sectors": "sectors(512)",
}

// trim cuts blanks off both ends.
func (v value) trim() value {
	from, to := 0, len(v.text)
	for from < to && isBlank(v.text[from]) {
		from++
	}
	for to > from && isBlank(v.text[to-1]) {
		to--
	}
	return v.part(from, to)
}
