package keeper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// askPatience is how long all layers have to answer, from when the first question is asked.
const askPatience = 5 * time.Second

// orphanWait bounds how long the taking off of one dead layer may take.
const orphanWait = 30 * time.Second

// errSilent: where a layer lies, something does not answer.
var errSilent = errors.New("it does not come to its end, because a file system of that container does not answer; what it had done is undone")

// askElsewhere is a graft.Asker.
func (c *Client) askElsewhere(layers []graft.Orphan) (dead, silent []bool, err error) {
	list, err := json.Marshal(layers)
	if err != nil {
		return nil, nil, err
	}
	e, err := startErrand(c.executable(), "--asks", bytes.NewReader(list))
	if err != nil {
		return nil, nil, err
	}
	defer e.leave()
	dead, silent = make([]bool, len(layers)), make([]bool, len(layers))
	for i := range silent {
		silent[i] = true
	}
	end := time.Now().Add(startPatience)
	for answers, left := bufio.NewReader(e.answers), len(layers); left > 0; {
		if err := e.answers.SetReadDeadline(end); err != nil {
			return nil, nil, err
		}
		line, err := answers.ReadString('\n')
		if os.IsTimeout(err) && end.Before(time.Now()) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("ask what looks like layers whether somebody serves them: %w %s", err, e.said.text())
		}
		if line == asksNow {
			end = time.Now().Add(askPatience)
			continue
		}
		var i int
		var is bool
		if _, err := fmt.Sscan(line, &i, &is); err != nil || i < 0 || i >= len(layers) || !silent[i] {
			return nil, nil, fmt.Errorf("ask what looks like layers whether somebody serves them: answer %q", line)
		}
		dead[i], silent[i] = is, false
		left--
	}
	return dead, silent, nil
}

const asksNow = "asking\n"

// RunAsker is the process that asks: it reads a list of layers, and tells the number of each that has answered, and whether it is dead.
func RunAsker(in io.Reader, tell io.Writer) error {
	var layers []graft.Orphan
	if err := json.NewDecoder(in).Decode(&layers); err != nil {
		return err
	}
	if _, err := io.WriteString(tell, asksNow); err != nil {
		return err
	}
	var one sync.Mutex
	return graft.AskLayers(layers, func(i int, dead bool) error {
		one.Lock()
		defer one.Unlock()
		_, err := fmt.Fprintln(tell, i, dead)
		return err
	})
}

// takeOffElsewhere takes a dead layer off.
func (c *Client) takeOffElsewhere(ctx context.Context, o graft.Orphan) (*graft.Report, error) {
	what, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	e, err := startErrand(c.executable(), "--orphan", bytes.NewReader(what))
	if err != nil {
		return nil, err
	}
	defer e.leave()
	stop := context.AfterFunc(ctx, func() { _ = e.answers.SetReadDeadline(time.Now()) })
	defer stop()
	if err := e.answers.SetReadDeadline(time.Now().Add(orphanWait + startPatience)); err != nil {
		return nil, err
	}
	fail := func(err error) error {
		return fmt.Errorf("take the dead layer %s off %s of process %d: %w", o.ID, o.Path, o.PID, err)
	}
	var res result
	err = json.NewDecoder(e.answers).Decode(&res)
	switch {
	case ctx.Err() != nil:
		return nil, fail(ctx.Err())
	case os.IsTimeout(err):
		return nil, fail(errSilent)
	case err != nil:
		return nil, fail(fmt.Errorf("the process that does it died (%w) %s", err, e.said.text()))
	case res.Error != "":
		return nil, errors.New(res.Error)
	}
	return res.Report, nil
}

// RunOrphanTaker is the process that does: it reads a layer, and tells a result.
func RunOrphanTaker(in io.Reader, tell io.Writer) error {
	raiseDescriptorLimit()
	debug.SetGCPercent(-1) // as a swapper
	debug.SetMemoryLimit(512 << 20)
	var o graft.Orphan
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), orphanWait)
	defer cancel()
	var res result
	rep, err := o.TakeOff(ctx, endHung)
	if res.Report = rep; err != nil {
		res.Error = err.Error()
	}
	return json.NewEncoder(tell).Encode(res)
}
