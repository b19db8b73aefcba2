package strictyaml

import (
	"encoding/json"
	"fmt"
)

// Scalar is a string or a number as it is written: 5%, 0.05, 4096, 0600. What
// it means is for who reads it. JSON has it as a string.
type Scalar string

// UnmarshalJSON reads a string or a number.
func (s *Scalar) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err == nil {
		*s = Scalar(text)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("%s is neither a string nor a number", b)
	}
	*s = Scalar(n)
	return nil
}

// Scalars is a list of scalars, or one alone. JSON has a list.
type Scalars []Scalar

// UnmarshalJSON reads a list, or one string or number.
func (s *Scalars) UnmarshalJSON(b []byte) error {
	var one Scalar
	if err := one.UnmarshalJSON(b); err == nil {
		*s = Scalars{one}
		return nil
	}
	var list []Scalar
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*s = list
	return nil
}
