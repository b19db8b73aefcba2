package chain

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
)

// kallsyms lists the kernel's symbols, see Documentation/admin-guide/kdump and
// kernel/kallsyms.c: "address type name [module]".
const kallsyms = "/proc/kallsyms"

// maxFunction bounds what is taken for one function, in bytes: the last
// function of a module is followed by a symbol that may be far away.
const maxFunction = 1 << 20

// symbols is what the running kernel says about its functions.
type symbols struct {
	// sorted by address; aliases (two names at one address) follow each other.
	sorted []symbol
	byName map[string][]int // indices into sorted, of code only
	// hidden: all addresses were shown as zero, so only the names are known.
	hidden bool
}

var errHidden = errors.New(kallsyms + " shows no addresses: CAP_SYSLOG is needed, and the sysctl kernel.kptr_restrict must not be 2")

type symbol struct {
	address uint64
	name    string
	module  string // empty: the kernel proper
	code    bool
}

// addresses is a range of code, [start, end).
type addresses struct{ start, end uint64 }

func readSymbols() (*symbols, error) {
	f, err := os.Open(kallsyms)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	s, err := parseSymbols(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kallsyms, err)
	}
	return s, nil
}

// parseSymbols reads the format of /proc/kallsyms. Lines that are none are an
// error, and so is a list without any.
func parseSymbols(r io.Reader) (*symbols, error) {
	s := &symbols{byName: map[string][]int{}, hidden: true}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		at, rest, _ := strings.Cut(line, " ")
		kind, name, ok := strings.Cut(rest, " ")
		address, err := strconv.ParseUint(at, 16, 64)
		if err != nil || !ok || len(kind) != 1 || name == "" {
			return nil, fmt.Errorf("line %d is not a symbol: %.60q", n, line)
		}
		s.hidden = s.hidden && address == 0
		name, module, _ := strings.Cut(name, "\t")
		if module == "[bpf]" {
			continue // programs, ours among them: they come and go
		}
		s.sorted = append(s.sorted, symbol{address, name, strings.Trim(module, "[]"), strings.Contains("tTwW", kind)})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(s.sorted) == 0 {
		return nil, errors.New("it has no symbols")
	}
	slices.SortStableFunc(s.sorted, func(a, b symbol) int {
		switch {
		case a.address < b.address:
			return -1
		case a.address > b.address:
			return 1
		}
		return 0
	})
	for i, y := range s.sorted {
		if y.code {
			s.byName[y.name] = append(s.byName[y.name], i)
		}
	}
	return s, nil
}

// extent is the code from symbol i to the next address that has a symbol.
func (s *symbols) extent(i int) addresses {
	start := s.sorted[i].address
	for _, next := range s.sorted[i+1:] {
		if next.address > start {
			return addresses{start, min(next.address, start+maxFunction)}
		}
	}
	return addresses{start, start + maxFunction} // also if all addresses are hidden
}

// function is what the kernel has of one function.
type function struct {
	name   string // as it is to be probed
	module string
	// whole says that the function itself is there, with the parameters its
	// source has. If not, only clones that the compiler made of it are.
	whole bool
	// code has the function and what the compiler split off (f.cold) or made of
	// it (f.isra.0, f.constprop.0, f.part.0).
	code []addresses
	// clones are the names of those besides the function itself.
	clones []string
}

// find looks a function up by the name that its source has.
func (s *symbols) find(name string) (function, error) {
	f := function{name: name}
	var at []uint64
	for _, i := range s.byName[name] {
		if s.hidden || !slices.Contains(at, s.sorted[i].address) {
			at = append(at, s.sorted[i].address)
			f.code = append(f.code, s.extent(i))
			f.module = s.sorted[i].module
		}
	}
	if len(at) > 1 {
		return function{}, fmt.Errorf("the kernel has %d functions of that name: which one is meant cannot be said", len(at))
	}
	f.whole = len(at) == 1
	for i, y := range s.sorted {
		if y.code && cloneOf(y.name, name) {
			f.code = append(f.code, s.extent(i))
			f.clones = append(f.clones, y.name)
			if !f.whole && f.module == "" {
				f.module = y.module
			}
		}
	}
	if len(f.code) == 0 {
		return function{}, s.unknown(name)
	}
	return f, nil
}

// cloneOf says whether name is that of code that GCC or clang made out of the
// function: function.isra.0, function.cold, function.constprop.0.isra.0, …
func cloneOf(name, function string) bool {
	rest, ok := strings.CutPrefix(name, function+".")
	if !ok {
		return false
	}
	for _, part := range strings.Split(rest, ".") {
		switch part {
		case "isra", "constprop", "part", "cold", "llvm":
		default:
			if _, err := strconv.ParseUint(part, 10, 64); err != nil {
				return false
			}
		}
	}
	return true
}

// unknown says that there is no such function, and which ones there are.
func (s *symbols) unknown(name string) error {
	text := "not a function that can be traced on this kernel: it is inlined into its callers, in a module that is not loaded, or does not exist"
	if near := s.near(name, 4); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, ", ") + "?"
	}
	return errors.New(text)
}

// near returns up to limit functions whose names look like name, the best first.
func (s *symbols) near(name string, limit int) []string {
	type candidate struct {
		name     string
		distance int
	}
	// In an inlined function's place its callers and callees can be used; these
	// often carry the same name with a prefix or a suffix.
	bare := strings.Trim(name, "_")
	farthest := 1 + len(name)/6
	var all []candidate
	for n, at := range s.byName {
		if strings.Contains(n, ".") || s.sorted[at[0]].name == "" || strings.HasPrefix(n, "__pfx_") || strings.HasPrefix(n, "__probestub_") {
			continue
		}
		d := farthest + 1
		if len(bare) >= 4 && strings.Contains(n, bare) {
			d = farthest + len(n) - len(bare)
			if strings.Trim(n, "_") == bare {
				d = 0
			}
		}
		if diff := len(n) - len(name); diff <= farthest && -diff <= farthest {
			d = min(d, policy.EditDistance(n, name))
		}
		if d <= farthest || len(bare) >= 4 && strings.Contains(n, bare) {
			all = append(all, candidate{n, d})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.name, b.name)
	})
	var names []string
	for _, c := range all[:min(limit, len(all))] {
		names = append(names, c.name)
	}
	return names
}
