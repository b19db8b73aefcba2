package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// serverClient is the keeper's end of the connection with its server.
type serverClient struct {
	conn *wire.Conn
	cmd  *exec.Cmd
	dead chan struct{} // closed when the process has ended
}

// startServer starts the process; desk answers what it has to tell.
func startServer(dir string, desk wire.Handler, logger *slog.Logger) (*serverClient, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	news, theirNews, err := wire.Pair()
	if err != nil {
		_, _ = conn.Close(), theirs.Close() // never used
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "server", "--state-dir", dir)
	cmd.ExtraFiles = []*os.File{theirs, theirNews}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	err = cmd.Start()
	_, _ = theirs.Close(), theirNews.Close() // the process has its own
	if err != nil {
		_, _ = conn.Close(), news.Close()
		return nil, fmt.Errorf("start the server: %w", err)
	}
	s := &serverClient{conn: conn, cmd: cmd, dead: make(chan struct{})}
	go func() {
		defer func() { _ = news.Close() }()
		if err := news.Serve(desk); err != nil {
			logger.Warn("the server's news broke off", "err", err)
		}
	}()
	go func() {
		err := cmd.Wait()
		logger.Info("the server has ended", "pid", cmd.Process.Pid, "err", err)
		close(s.dead)
	}()
	return s, nil
}

func (s *serverClient) call(method string, in, out any, fds ...int) error {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	got, err := s.conn.Call(ctx, method, in, out, fds...)
	wire.CloseAll(got)
	return err
}

func (s *serverClient) status(id string) ([]RuleStatus, error) {
	var out []RuleStatus
	err := s.call(callStatus, layerCall{Layer: id}, &out)
	return out, err
}

// retired lists the files of a layer that bypass it although a rule can match them.
func (s *serverClient) retired(id string) ([]graft.RetiredFile, error) {
	var out []graft.RetiredFile
	err := s.call(callRetired, layerCall{Layer: id}, &out)
	return out, err
}

func (s *serverClient) alive() bool {
	select {
	case <-s.dead:
		return false
	default:
		return true
	}
}

func (s *serverClient) pid() int {
	if s.cmd == nil {
		return 0 // inherited: it is the parent
	}
	return s.cmd.Process.Pid
}

// kill ends the process; an inherited one ends with its connection.
func (s *serverClient) kill() {
	if s.cmd == nil {
		_ = s.conn.Close()
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended just now
}

// end marks an inherited server as ended, which nobody can wait for.
func (s *serverClient) end() { close(s.dead) }
