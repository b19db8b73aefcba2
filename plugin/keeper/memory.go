package keeper

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// shrink gives back what only the start of the process needed: the garbage of the
// packages' initialisation, and the pages of the program that it touched. There
// is one binary for everything, and most of what is linked into it never runs in
// a process that stays. The pages are in the page cache still; those that are
// needed come back by themselves, without I/O.
func shrink(logger *slog.Logger) {
	debug.FreeOSMemory()
	if err := dropProgramPages(); err != nil {
		logger.Warn("give the pages of the program back", "err", err)
	}
}

func dropProgramPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	all, err := readOnlyMaps(string(b), exe)
	if err != nil {
		return fmt.Errorf("/proc/self/maps: %w", err)
	}
	for _, m := range all {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("madvise: %w", e)
		}
	}
	return nil
}

type addresses struct{ start, end uintptr }

// readOnlyMaps finds where a file is mapped and cannot be written to (proc_pid_maps(5)). What can be written may have
// been: madvise(2) would throw it away.
func readOnlyMaps(maps, file string) ([]addresses, error) {
	var all []addresses
	for line := range strings.Lines(maps) {
		line = strings.TrimSuffix(line, "\n")
		var m addresses
		var prot string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &m.start, &m.end, &prot); err != nil || m.start >= m.end {
			return nil, fmt.Errorf("%q is no map (%v)", line, err)
		}
		if !strings.Contains(prot, "w") && strings.HasSuffix(line, " "+file) {
			all = append(all, m)
		}
	}
	return all, nil
}
