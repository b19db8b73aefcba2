package chain

import (
	"os"
	"sync"
)

// known is what was read about the kernel's functions. The lists are long (some
// 200,000 and 60,000 lines), so they are read again only if other modules are
// loaded than before.
type known struct {
	symbols *symbols
	// filter has the functions that ftrace knows, blacklist those that no kprobe
	// may be on; nil: not known, as where tracefs or debugfs is not mounted.
	filter, blacklist map[string]bool
}

var last struct {
	sync.Mutex
	modules string
	known   *known
}

func readKnown() (*known, error) {
	modules, err := os.ReadFile("/proc/modules") // not there without CONFIG_MODULES
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	last.Lock()
	defer last.Unlock()
	if last.known != nil && last.modules == loaded(modules) {
		return last.known, nil
	}
	s, err := readSymbols()
	if err != nil {
		return nil, err
	}
	last.modules = loaded(modules)
	last.known = &known{
		symbols:   s,
		filter:    names(filterLists, 0), // "name [module]" on each line
		blacklist: names(blacklists, 1),  // "start-end<tab>name" on each line
	}
	return last.known, nil
}

// loaded is what /proc/modules says without what changes while a module stays:
// the number of its users. Name, size and address are kept.
func loaded(modules []byte) string {
	var kept []byte
	field := 0
	for _, b := range modules {
		switch b {
		case ' ':
			field++
		case '\n':
			field = 0
		}
		if field != 2 && field != 3 { // users, and who they are
			kept = append(kept, b)
		}
	}
	return string(kept)
}
