package policy

import (
	"fmt"
	"slices"
	"strconv"
)

var (
	distributionNames = [...]string{Fixed: "fixed", Uniform: "uniform", Normal: "normal", Exp: "exp", Pareto: "pareto"}
	corruptNames      = [...]string{Bitflip: "bitflip", Zero: "zero", Random: "random"}
	tornNames         = [...]string{Prefix: "prefix", Sectors: "sectors"}
)

// String gives the name that a rule has for it.
func (d Distribution) String() string { return nameOf(distributionNames[:], d) }

// MarshalText gives that name, for JSON.
func (d Distribution) MarshalText() ([]byte, error) {
	return nameText(distributionNames[:], d, "distribution")
}

// UnmarshalText reads that name.
func (d *Distribution) UnmarshalText(text []byte) (err error) {
	*d, err = named[Distribution](distributionNames[:], text, "distribution")
	return err
}

// String gives the name that a rule has for it.
func (k CorruptKind) String() string { return nameOf(corruptNames[:], k) }

// MarshalText gives that name, for JSON.
func (k CorruptKind) MarshalText() ([]byte, error) {
	return nameText(corruptNames[:], k, "kind of corruption")
}

// UnmarshalText reads that name.
func (k *CorruptKind) UnmarshalText(text []byte) (err error) {
	*k, err = named[CorruptKind](corruptNames[:], text, "kind of corruption")
	return err
}

// String gives the name that a rule has for it.
func (k TornKind) String() string { return nameOf(tornNames[:], k) }

// MarshalText gives that name, for JSON.
func (k TornKind) MarshalText() ([]byte, error) {
	return nameText(tornNames[:], k, "kind of torn write")
}

// UnmarshalText reads that name.
func (k *TornKind) UnmarshalText(text []byte) (err error) {
	*k, err = named[TornKind](tornNames[:], text, "kind of torn write")
	return err
}

func nameOf[T ~uint8](names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return strconv.Itoa(int(v))
}

func nameText[T ~uint8](names []string, v T, what string) ([]byte, error) {
	if int(v) >= len(names) {
		return nil, fmt.Errorf("there is no %s number %d", what, v)
	}
	return []byte(names[v]), nil
}

func named[T ~uint8](names []string, text []byte, what string) (T, error) {
	i := slices.Index(names, string(text))
	if i < 0 {
		return 0, fmt.Errorf("unknown %s %q", what, text)
	}
	return T(i), nil
}
