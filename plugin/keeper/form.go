package keeper

import (
	"encoding/json"
	"fmt"
)

// CheckForm looks at the version that a file of the state directory has of its form, before anything else of it is. One of
// a later version is refused as such: its fields may mean something else. Earlier ones are up to the caller, who knows
// what they looked like; a file without a version has 0.
func CheckForm(b []byte, known int) (version int, err error) {
	var head struct{ Version int }
	if err := json.Unmarshal(b, &head); err != nil {
		return 0, err
	}
	if head.Version > known {
		return head.Version, fmt.Errorf("its form is %d, of a later version of faultgraft; this one knows %d", head.Version, known)
	}
	return head.Version, nil
}
