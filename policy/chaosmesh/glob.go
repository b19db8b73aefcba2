package chaosmesh

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
)

// Globs of Chaos Mesh are those of Rust's crate glob (toda, src/injector/filter.rs):
// *, ?, [abc], [!a-z] and ** as a whole segment. There are no {} and no
// backslashes, which stand for themselves; ] and others are escaped by [].

// globError is a wrong path.
type globError struct{ message, fix string }

func (e *globError) Error() string { return e.message + "; " + e.fix }

func badGlob(fix, format string, args ...any) error {
	return &globError{fmt.Sprintf(format, args...), fix}
}

// pathGlob writes a path of Chaos Mesh as a glob of faultgraft that lies in the
// volume: toda sees nothing else. Without a path all of the volume is meant.
func pathGlob(volume, pattern string) (string, error) {
	volume = path.Clean(volume)
	below := policy.EscapeGlob(strings.TrimSuffix(volume, "/")) + "/"
	if pattern == "" {
		return policy.CheckGlob(below + "**")
	}
	if strings.HasPrefix(pattern, "**/") {
		pattern = "/" + pattern // a ** at the beginning also stands for what lies before the volume
	}
	if !path.IsAbs(pattern) {
		return "", badGlob("write it as the container sees it, such as "+below+"**/*", "the path is not absolute: it could never match")
	}
	segments, err := fromRust(pattern)
	if err != nil {
		return "", err
	}
	if _, err := policy.CheckGlob("/" + strings.Join(segments, "/")); err != nil {
		return "", err
	}
	left := within(segments, volume)
	switch {
	case len(left) == 0:
		return "", badGlob("begin the path with "+below, "the path does not lie in volumePath %s: it could never match", volume)
	case len(left) == 1 && len(left[0]) == 0:
		return policy.CheckGlob(policy.EscapeGlob(volume))
	case len(left) == 1:
		return policy.CheckGlob(below + strings.Join(left[0], "/"))
	case len(left) == 2 && len(left[1]) == 0 && slices.Equal(left[0], []string{"**", "*"}):
		return policy.CheckGlob(below + "**") // with the volume itself
	}
	return "", badGlob("begin the path with "+below, "the stars of the path meet volumePath %s in more than one way", volume)
}

// within gives what remains of a glob's segments below a directory: a list for
// each way in which the directory fits the glob's beginning.
func within(segments []string, dir string) [][]string {
	at := map[int]bool{}
	var reach func(i int)
	reach = func(i int) {
		if at[i] = true; i < len(segments) && segments[i] == "**" {
			reach(i + 1)
		}
	}
	reach(0)
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if name == "" {
			break
		}
		before := at
		at = map[int]bool{}
		for i := range before {
			switch {
			case i == len(segments):
			case segments[i] == "**":
				reach(i)
			case fits(segments[i], name):
				reach(i + 1)
			}
		}
	}
	var left [][]string
	for i := range len(segments) + 1 {
		covered := i > 0 && segments[i-1] == "**" && at[i-1] // ** can stand for nothing
		if at[i] && !covered {
			left = append(left, segments[i:])
		}
	}
	return left
}

func fits(segment, name string) bool {
	canonical, err := policy.CheckGlob("/" + segment)
	return err == nil && (&policy.IOFault{Path: canonical, Ops: policy.GroupAll}).Match(policy.OpRead, "/"+name)
}

// fromRust translates the syntax and cuts at the slashes. A ** at the end of Rust's does not match the
// directory itself, which /** does.
func fromRust(pattern string) ([]string, error) {
	var out []string
	segments := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
	for i, s := range segments {
		switch {
		case s == "**" && i > 0 && segments[i-1] == "**":
			continue // means the same as one
		case s == "**":
		case strings.Contains(s, "**"):
			// toda takes such a path for none at all, and then matches everything.
			return nil, badGlob("write /**/ with nothing else between the slashes, or a single *", "** is only a part of %q", s)
		default:
			var err error
			if s, err = segmentFromRust(s); err != nil {
				return nil, err
			}
		}
		out = append(out, s)
	}
	if out[len(out)-1] == "**" {
		out = append(out, "*")
	}
	return out, nil
}

func segmentFromRust(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '[' {
			if strings.IndexByte(`{},\]`, s[i]) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
			continue
		}
		class, end, ok := classFromRust(s[i:])
		if !ok {
			return "", badGlob("write [[] for a bracket in a name", "[ without ] in %q", s)
		}
		b.WriteString(class)
		i += end - 1
	}
	return b.String(), nil
}

// classFromRust translates the [...] that s begins with; end is the offset after it.
func classFromRust(s string) (class string, end int, ok bool) {
	var b strings.Builder
	b.WriteByte('[')
	from := 1
	if strings.HasPrefix(s[from:], "!") {
		b.WriteByte('!')
		from++
	}
	// A ] that comes first stands for itself.
	if from >= len(s) {
		return "", 0, false
	}
	last := strings.IndexByte(s[from+1:], ']')
	if last < 0 {
		return "", 0, false
	}
	last += from + 1
	members := s[from:last]
	for j := 0; j < len(members); j++ {
		c := members[j]
		dash := c == '-' && j > 0 && j < len(members)-1
		if strings.IndexByte(`\]!^[{},`, c) >= 0 || c == '-' && !dash {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte(']')
	return b.String(), last + 1, true
}
