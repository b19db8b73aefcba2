package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// unfinished is how old a temporary file is that nobody is going to rename any more.
const unfinished = time.Minute

// sweepWait is how long a keeper's folder is waited for that somebody has locked.
const sweepWait = time.Second

// Sweep removes what processes left in a state directory (empty: DefaultStateDir) that
// were killed: folders of keepers that are gone, and files that were not written to
// their end. It takes nothing from a process that lives. It gives the paths.
func Sweep(dir string) (removed []string, err error) {
	d := orDefault(dir)
	if _, err := os.Stat(string(d)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	keys, err := d.keys()
	errs := []error{err}
	for _, k := range keys {
		if alive(d.socket(k)) {
			continue
		}
		unlock, err := d.lock(k, sweepWait)
		if err != nil {
			continue // somebody is about to start one there
		}
		if !alive(d.socket(k)) {
			errs = append(errs, os.RemoveAll(d.keeper(k)))
			removed = append(removed, d.keeper(k))
		}
		unlock()
	}
	for _, folder := range []string{string(d), d.ended()} {
		files, err := temporary(folder)
		errs = append(errs, err)
		for _, f := range files {
			if s, err := os.Stat(f); err != nil || time.Since(s.ModTime()) < unfinished {
				continue // somebody is about to rename it, or has
			}
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, f)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("sweep %s: %w", d, err)
	}
	return removed, nil
}

// temporary lists the files that are made in a folder before they get their names (ReplaceFile, saveEnded).
func temporary(folder string) ([]string, error) {
	var all []string
	for _, pattern := range []string{".*.json-*", ".new-*"} {
		files, err := filepath.Glob(filepath.Join(escapeGlob(folder), pattern))
		if err != nil {
			return nil, err
		}
		all = append(all, files...)
	}
	return all, nil
}
