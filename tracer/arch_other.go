//go:build linux && !amd64 && !arm64

package tracer

import (
	"errors"

	"golang.org/x/sys/unix"
)

// The package compiles on other machines, so that a binary for them can say
// in words that it cannot swap; nothing below is reached.

var errArch = errors.New("open files can be swapped on x86-64 and arm64 only: there is no code to run inside a process of this machine")

func archCheck() error { return errArch }

type registers = unix.PtraceRegs

type beforeStop struct{}

var parasiteCode []byte

const wordFini, wordCount = 0, 1

func paraImage(*paraConfig) ([]byte, error)         { return nil, errArch }
func paraLast() uint64                              { return 0 }
func paraFini() uint64                              { return 0 }
func inSyscall(*registers) (nr, ret int64, ok bool) { return 0, 0, false }
func startRegs(r registers, _ uint64) registers     { return r }
func pc(*registers) uint64                          { return 0 }
func stackPointer(*registers) uint64                { return 0 }
func codeModel(*registers) error                    { return errArch }
func getRegs(int, *registers) error                 { return errArch }
func setRegs(int, *registers) error                 { return errArch }
func lookBefore(int) beforeStop                     { return beforeStop{} }
func stopRegs(*thread) error                        { return errArch }
func restartCall(*thread, bool) error               { return errArch }
func calledAgain(*thread) error                     { return errArch }
func notCalledAgain(*thread) error                  { return errArch }
func (r *remote) giveBack() error                   { return errArch }

var interruptedCalls = map[int64]bool{}
