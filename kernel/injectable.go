package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// errorKind says how a function on the error-injection list reports errors
// (include/asm-generic/error-injection.h, EI_ETYPE_*), by the words of the list.
type errorKind string

const (
	kindNull      errorKind = "NULL"       // a NULL pointer
	kindErrno     errorKind = "ERRNO"      // a negative errno
	kindErrnoNull errorKind = "ERRNO_NULL" // an errno as a pointer, or NULL
	kindTrue      errorKind = "TRUE"       // true
)

// parseInjectable reads the error-injection list: "name [module]<tab>kind" on
// each line, see Documentation/fault-injection/fault-injection.rst.
func parseInjectable(text []byte) map[string]errorKind {
	kinds := map[string]errorKind{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 {
			kinds[f[0]] = errorKind(f[len(f)-1])
		}
	}
	return kinds
}

// Functions are the kernel functions that a rule with hook=function:NAME can
// fail here, sorted: the kernel's error-injection list. The error says why they
// are not known.
func Functions() ([]string, error) {
	text, err := os.ReadFile(injectionList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no %s: either debugfs is not mounted (mount -t debugfs debugfs /sys/kernel/debug), or the kernel lacks CONFIG_FUNCTION_ERROR_INJECTION", injectionList)
	}
	if err != nil {
		return nil, fmt.Errorf("functions that can be failed: %w", err)
	}
	return slices.Sorted(maps.Keys(parseInjectable(text))), nil
}
