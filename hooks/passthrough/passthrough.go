// Package passthrough makes a program that was started as a container runtime
// become the real one before the rest of the program is initialized, which takes
// ten times as long: each command of each container passes through. runc does
// the same for its own `runc init`. It is for package main only, and does
// nothing in a program that was started by another name.
package passthrough

import (
	"os"

	"github.com/faultgraft/faultgraft/hooks/wrapper"
)

func init() {
	if inv, is := wrapper.Parse(os.Args, os.Getenv); is && inv.Command != "create" {
		_ = inv.Become() // main tries again, and says what is wrong
	}
}
