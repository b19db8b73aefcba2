package policy

import (
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Match reports whether the rule is about this operation on this path. The path
// is absolute and clean, as the container sees it.
func (f *IOFault) Match(op Op, path string) bool {
	if !f.Ops.Has(op) || !matchGlob(f.Path, path) {
		return false
	}
	for _, x := range f.Exclude {
		if matchGlob(x, path) {
			return false
		}
	}
	return true
}

// matchGlob matches a canonical glob. What comes before the first special
// character is compared as it is; most globs are decided by that.
func matchGlob(glob, name string) bool {
	if len(name) <= 1 {
		// The root is matched by / and /** only: for doublestar the * of /* may
		// be empty, and /* would be about the root, too.
		return name == "/" && (glob == "/" || glob == "/**")
	}
	special := strings.IndexAny(glob, globSpecial)
	if special < 0 {
		return glob == name
	}
	slash := max(strings.LastIndexByte(glob[:special], '/'), 0)
	if !strings.HasPrefix(name, glob[:slash]) {
		return false
	}
	glob, name = glob[slash:], name[slash:]
	switch glob {
	case "/**":
		return name == "" || name[0] == '/'
	case "/*":
		return strings.LastIndexByte(name, '/') == 0
	}
	return doublestar.MatchUnvalidated(glob, name)
}

// Touches reports whether the rule could match dir or something below it. It
// may say yes where nothing can match, never no where something can: excludes
// are not looked at, nor is what follows {} that hold a slash.
func (f *IOFault) Touches(dir string) bool {
	if dir == "/" {
		return true
	}
	glob := f.Path
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		seg, rest, more := cutSegment(glob[min(1, len(glob)):])
		switch {
		case seg == "**" || strings.ContainsRune(seg, '{') && strings.ContainsRune(seg, '/'):
			return true
		case !doublestar.MatchUnvalidated(seg, name):
			return false
		}
		glob = ""
		if more {
			glob = "/" + rest
		}
	}
	return true
}

// GraftPath gives the path that a layer must be over for a glob to take effect:
// the directories before the first special character, or the path itself when
// the glob has none. /data/** and /data/*.db give /data, /data/a.db gives
// itself, /** gives /.
func GraftPath(glob string) string {
	graft := "/"
	for rest, more := strings.TrimPrefix(glob, "/"), true; more; {
		var seg string
		seg, rest, more = cutSegment(rest)
		name, plain := unescape(seg)
		if !plain {
			break
		}
		graft = path.Join(graft, name)
	}
	return graft
}

// unescape gives the name that a segment without special characters stands for.
func unescape(seg string) (name string, plain bool) {
	var b strings.Builder
	for i := 0; i < len(seg); i++ {
		c := seg[i]
		switch {
		case c == '\\' && i+1 < len(seg):
			i++
			c = seg[i]
		case strings.IndexByte("*?[{", c) >= 0:
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// GraftPaths groups rules by the path of the layer that they need. A path that
// is below another one joins it: layers of one container never nest. The order
// of the rules is kept.
func GraftPaths(rules []Rule) map[string][]Rule {
	var tops []string
	for i := range rules {
		if rules[i].IO != nil {
			tops = append(tops, GraftPath(rules[i].IO.Path))
		}
	}
	slices.SortFunc(tops, func(a, b string) int { return len(a) - len(b) })
	groups := make(map[string][]Rule)
	for _, p := range tops {
		if topOf(groups, p) == "" {
			groups[p] = nil
		}
	}
	for _, r := range rules {
		if r.IO != nil {
			top := topOf(groups, GraftPath(r.IO.Path))
			groups[top] = append(groups[top], r)
		}
	}
	return groups
}

// topOf finds the key that is p or a directory above it; "" if there is none.
func topOf(groups map[string][]Rule, p string) string {
	for {
		if _, ok := groups[p]; ok {
			return p
		}
		if p == "/" {
			return ""
		}
		p = path.Dir(p)
	}
}
