package keeper

import (
	"bufio"
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
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var start, end uintptr
		var prot string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &prot); err != nil {
			return fmt.Errorf("/proc/self/maps: %q: %w", lines.Text(), err)
		}
		// What can be written may have been: madvise(2) would throw it away.
		if strings.Contains(prot, "w") || !strings.HasSuffix(lines.Text(), " "+exe) {
			continue
		}
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("madvise: %w", e)
		}
	}
	return nil
}
