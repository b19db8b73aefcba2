package keeper

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// closePatience is how long one close may take.
const closePatience = 2 * time.Second

// closeElsewhere is a graft.Closer: another process closes, and is left behind where it waits for ever.
func closeElsewhere(files []graft.OpenFile) (closed int, err error) {
	var list bytes.Buffer
	for _, f := range files {
		fmt.Fprintln(&list, f.PID, f.FD)
	}
	e, err := startErrand("/proc/self/exe", "--closes", &list)
	if err != nil {
		return 0, err
	}
	defer e.leave()
	for patience, answers := startPatience, bufio.NewReader(e.answers); closed < len(files); patience = closePatience {
		if err := e.answers.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return closed, err
		}
		switch b, err := answers.ReadByte(); {
		case os.IsTimeout(err) && patience == closePatience:
			return closed, nil
		case err != nil:
			return closed, fmt.Errorf("of %d files %d were closed: %w", len(files), closed, err)
		case b == closedOne:
			closed++
		}
	}
	return closed, nil
}

const (
	closerReady = 'r'
	closedOne   = '.'
)

// RunCloser is that process: it reads a process id and a descriptor from each line of in, and tells of each file that it has closed.
func RunCloser(in io.Reader, tell io.Writer) error {
	var files []graft.OpenFile
	for {
		var f graft.OpenFile
		_, err := fmt.Fscanln(in, &f.PID, &f.FD)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	say := func(b byte) error { _, err := tell.Write([]byte{b}); return err }
	if err := say(closerReady); err != nil {
		return err
	}
	return graft.CloseCopies(files, func() error { return say(closedOne) })
}
