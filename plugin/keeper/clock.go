package keeper

import (
	"encoding/json"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
)

// A time of day that another process reads has lost what makes Go's times immune to a
// clock that is set (time.Time, "Monotonic Clocks"): a rule would end too early, or go
// on for a day. So the start of rules travels as a time of CLOCK_MONOTONIC, which all
// processes of a machine have in common and nobody can set (clock_gettime(2)).

// rulesOnWire is a rulesCall as it travels.
type rulesOnWire struct {
	rulesFields
	Since int64 `json:"since"` // ns of CLOCK_MONOTONIC
}

type rulesFields rulesCall

// MarshalJSON is for wire.Conn.
func (c rulesCall) MarshalJSON() ([]byte, error) {
	return json.Marshal(rulesOnWire{rulesFields(c), fusefs.Monotonic() - int64(time.Since(c.Start))})
}

// UnmarshalJSON makes the start a time of this process.
func (c *rulesCall) UnmarshalJSON(b []byte) error {
	var w rulesOnWire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*c = rulesCall(w.rulesFields)
	c.Start = time.Now().Add(-time.Duration(fusefs.Monotonic() - w.Since))
	return nil
}
