// Package property swaps the files of programs that never stand still: they make
// processes and threads without end (test/target/storms.c), each of which checks what it
// holds, or do random things with random objects (test/target/random.c, test/target/random).
// FAULTGRAFT_PROPERTY_TIME says for how long.
package property

import (
	"os"
	"testing"

	"github.com/faultgraft/faultgraft/test/programs"
)

func TestMain(m *testing.M) { os.Exit(programs.Main(m, func() error { return nil })) }

func faultgraft(t testing.TB) string { return programs.MustGo(t, "cmd/faultgraft") }
