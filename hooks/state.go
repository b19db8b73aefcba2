package hooks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// MaxState is the largest state that is read, in bytes. A state holds the
// annotations, which a stranger may have written.
const MaxState = 1 << 20

// maxID bounds a container's id, in bytes: it goes into the event log and into arguments.
const maxID = 1024

// ReadState reads a container's state, as a runtime writes it to a hook's
// standard input, up to its end.
func ReadState(r io.Reader) (*specs.State, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxState+1))
	if err != nil {
		return nil, fmt.Errorf("read the container's state from standard input: %w", err)
	}
	if len(b) > MaxState {
		return nil, fmt.Errorf("the container's state is larger than %d bytes; are its annotations that long?", MaxState)
	}
	return ParseState(b)
}

// ParseState parses a container's state and checks what a poststart hook needs
// of it. Fields that the specification does not have are let through, as it asks.
func ParseState(b []byte) (*specs.State, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, errors.New("no state on standard input: this command is for a container runtime, which writes the container's state there")
	}
	var s *specs.State
	if err := decode(b, &s); err != nil {
		return nil, fmt.Errorf("the container's state on standard input: %w", err)
	}
	if err := checkState(s); err != nil {
		return nil, fmt.Errorf("the container's state on standard input: %w", err)
	}
	return s, nil
}

func checkState(s *specs.State) error {
	switch {
	case s == nil:
		return errors.New("null instead of an object")
	case s.Version == "":
		return errors.New("no ociVersion; this is not the state of an OCI container")
	case s.Version != "1" && !strings.HasPrefix(s.Version, "1."):
		return fmt.Errorf("ociVersion is %q; faultgraft knows version 1 of the specification", s.Version)
	case s.ID == "":
		return errors.New("no id")
	case len(s.ID) > maxID || strings.ContainsFunc(s.ID, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("the id %.40q is longer than %d bytes or has control characters", s.ID, maxID)
	case s.Status != specs.StateCreated && s.Status != specs.StateRunning:
		// runc calls poststart hooks while the container is still "created".
		return fmt.Errorf("the status is %q; a %s hook sees a container that is created or running", s.Status, Poststart)
	case s.Pid <= 0:
		return fmt.Errorf("the pid is %d; the container has no process", s.Pid)
	case !filepath.IsAbs(s.Bundle):
		return fmt.Errorf("the bundle %q is not an absolute path", s.Bundle)
	}
	return nil
}

// decode parses one JSON value and nothing after it; what is wrong is said with its place.
func decode(b []byte, into any) error {
	err := json.Unmarshal(b, into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON: %w at byte %d", err, syntax.Offset)
	case errors.As(err, &kind):
		where := "at its top"
		if kind.Field != "" {
			where = "in " + kind.Field
		}
		return fmt.Errorf("JSON of another shape: %s %s, where %s is needed", kind.Value, where, kind.Type)
	}
	return err
}
