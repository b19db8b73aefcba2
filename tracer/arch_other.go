//go:build linux && !amd64

package tracer

import (
	"errors"

	"golang.org/x/sys/unix"
)

// The package compiles on other machines, so that a binary for them can say
// in words that it cannot swap; nothing below is reached.

var errArch = errors.New("open files can be swapped on x86-64 only: there is no code to run inside a process of this machine yet")

func archCheck() error { return errArch }

type registers = unix.PtraceRegs

var parasiteCode []byte

const (
	wordFini = 0
	wordLast = 1

	paraHeader = 16

	scratchControl = 8
	scratchData    = 16
	scratchTemps   = 128
	callStore      = 0
	scratchHeader  = 4096
)

type paraConfig struct {
	regs    registers
	abortIP uint64
	mask    uint64
	scratch span
	limit   *unix.Rlimit
	raised  unix.Rlimit
}

func paraImage(*paraConfig) []byte                  { return nil }
func paraLabel(int) uint64                          { return 0 }
func inSyscall(*registers) (nr, ret int64, ok bool) { return 0, 0, false }
func setRestart(*registers, bool)                   {}
func startRegs(r registers, _ uint64) registers     { return r }
func pc(*registers) uint64                          { return 0 }

func codeModel(*registers) error { return errArch }

var interruptedCalls = map[int64]bool{}
