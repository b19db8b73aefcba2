package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// setAside gives a file of the state directory that cannot be understood another name, under which
// nothing reads it, and says so: what is the file's, and why.
func setAside(what, path string, why error) error {
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	if err := os.Rename(path, aside); err != nil && !errors.Is(err, os.ErrNotExist) { // somebody else has done it
		return fmt.Errorf("%s, %s: %w; and it cannot be set aside: %w", what, path, why, err)
	}
	return fmt.Errorf("%s, %s: %w; set aside as %s", what, path, why, aside)
}
