package keeper

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A keeper is told of its target in memory that has a descriptor (memfd_create(2)): an argument can have 128 KiB (MAX_ARG_STRLEN,
// include/uapi/linux/binfmts.h), and a container has a say in how long its labels and names are.

// targetFile makes it. Nobody can change it any more.
func targetFile(t Target) (*os.File, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("faultgraft-target", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory to tell a keeper of its target: %w", err)
	}
	f := os.NewFile(uintptr(fd), "target")
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("memory to tell a keeper of its target: %w", err)
	}
	return f, nil
}

// readTarget reads it and closes the descriptor.
func readTarget(fd int) (t Target, err error) {
	f := os.NewFile(uintptr(fd), "target")
	defer func() { _ = f.Close() }() // read only
	s, err := f.Stat()
	if err != nil {
		return t, fmt.Errorf("keeper: target: %w", err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, s.Size())) // its offset is the writer's
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil {
		return t, fmt.Errorf("keeper: target: %w", err)
	}
	return t, nil
}
