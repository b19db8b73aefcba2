package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// checkForm looks at the version that a file of the state directory has of its form, before anything else of it is. One of
// a later version is refused as such: its fields may mean something else. Earlier ones are up to the caller, who knows
// what they looked like; a file without a version has 0.
func checkForm(b []byte, known int) (version int, err error) {
	var head struct{ Version int }
	if err := json.Unmarshal(b, &head); err != nil {
		return 0, err
	}
	if head.Version > known {
		return head.Version, fmt.Errorf("its form is %d, of a later version of faultgraft; this one knows %d", head.Version, known)
	}
	return head.Version, nil
}

// DecodeForm reads a file of the state directory of one form, strictly: who does not know all that is in it would drop it with the next save.
func DecodeForm(b []byte, version int, into any) error {
	v, err := checkForm(b, version)
	if err != nil {
		return err
	}
	if v != version {
		return fmt.Errorf("version %d: this agent knows version %d", v, version)
	}
	return DecodeStrictly(bytes.NewReader(b), into)
}

// DecodeStrictly reads one JSON value and nothing else.
func DecodeStrictly(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the end")
	}
	return nil
}
