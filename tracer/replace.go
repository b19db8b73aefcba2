package tracer

import (
	"fmt"
	"slices"
)

// replace asks for new files for the items that have none yet.
func (x *transaction) replace() error {
	open := slices.DeleteFunc(slices.Clone(x.s.items), func(it *item) bool { return !it.unanswered() })
	for items := range slices.Chunk(open, ReplaceAtOnce) {
		if err := x.alive(); err != nil {
			return err
		}
		x.o.Progress()
		all := make([]*Description, len(items))
		for i, it := range items {
			it.asked = true
			all[i] = &it.Description
		}
		given := x.o.ReplaceAll(all)
		if len(given) != len(items) {
			return fmt.Errorf("%d replacements for %d files", len(given), len(items))
		}
		for i, it := range items {
			if it.repl, it.lender, it.err = given[i].FD, given[i].Lender, given[i].Err; it.err != nil {
				it.repl = -1
			} else {
				it.err = it.withNew(it.lookAtNew)
			}
			if x.o.RequireRoom && noRoom(it.err) {
				return fmt.Errorf("a file for %s: %w", &items[i].Holders[0], it.err)
			}
		}
		if i := slices.IndexFunc(items, func(it *item) bool { return it.err != nil }); i >= 0 && x.o.RequireAll {
			return fmt.Errorf("no replacement for %s: %w", &items[i].Holders[0], items[i].err)
		}
	}
	return nil
}

// oneByOne is ReplaceAll for a caller that has Replace.
func (o *Options) oneByOne(all []*Description) []Replacement {
	given := make([]Replacement, len(all))
	for i, d := range all {
		o.Progress()
		given[i].FD, given[i].Err = o.Replace(d)
	}
	return given
}
