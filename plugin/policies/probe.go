package policies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

const (
	// probeOutput is how much of what a probe says is kept for the reason, bytes.
	probeOutput = 512
	// killDelay is how long a probe that was killed may keep its output open.
	killDelay = time.Second
)

// runProbe looks at a condition once; the error says why it is not green.
func runProbe(ctx context.Context, c *faultpolicy.StopCondition) error {
	timeout := time.Duration(c.Timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	if c.HTTP != nil {
		err = probeHTTP(ctx, c.HTTP)
	} else {
		err = probeCommand(ctx, c.Command)
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", timeout)
	}
	return err
}

func probeHTTP(ctx context.Context, p *faultpolicy.HTTPProbe) error {
	client := http.Client{
		// A connection of its own each time: one that is kept would hide a server that takes no new ones.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "faultgraft")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // the status is the answer
	_ = resp.Body.Close()
	good := resp.StatusCode >= 200 && resp.StatusCode < 300
	if len(p.Status) > 0 {
		good = slices.Contains(p.Status, resp.StatusCode)
	}
	if !good {
		return fmt.Errorf("GET %s: %s", p.URL, resp.Status)
	}
	return nil
}

// probeCommand runs a program in a process group of its own, so that what it
// starts ends with it when its time is up.
func probeCommand(ctx context.Context, command []string) error {
	if len(command) == 0 {
		return errors.New("the command is empty")
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(strings.ToValidUTF8(said.String(), "?")); text != "" {
			return fmt.Errorf("%s: %w: %s", command[0], err, text)
		}
		return fmt.Errorf("%s: %w", command[0], err)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b bytes.Buffer }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.b.Write(p)
	if extra := t.b.Len() - probeOutput; extra > 0 {
		t.b.Next(extra)
	}
	return len(p), nil
}

func (t *tail) String() string { return t.b.String() }
