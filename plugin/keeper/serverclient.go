package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// serverClient is the keeper's end of the connection with its server.
type serverClient struct {
	conn    *wire.Conn
	cmd     *exec.Cmd
	dead    chan struct{} // closed when the process has ended
	ending  sync.Once     // closes dead
	handled chan struct{} // closed when another server serves its layers, or it is clear that none will
	why     error         // it has ended; set before dead is closed
	starved uint64        // processes that the kernel has killed for lack of memory while it was there; set before dead is closed
	since   time.Time     // when it began to serve; zero while it does not yet; guarded by the keeper's mu
	shared  bool          // the keeper has its estate; guarded by the keeper's mu
}

func newServerClient(conn *wire.Conn, cmd *exec.Cmd) *serverClient {
	return &serverClient{conn: conn, cmd: cmd, dead: make(chan struct{}), handled: make(chan struct{})}
}

// follow says which dead server a new one follows.
type follow struct {
	estate     int // descriptor of what that left
	generation byte
}

// startServer starts the process; desk answers what it has to tell. of is nil for one that follows no other.
func startServer(dir string, of *follow, desk wire.Handler, logger *slog.Logger) (*serverClient, error) {
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
	if of != nil {
		fd, err := dupAll(of.estate)
		if err != nil {
			_, _, _, _ = conn.Close(), theirs.Close(), news.Close(), theirNews.Close()
			return nil, err
		}
		estate := os.NewFile(uintptr(fd[0]), "estate")
		defer func() { _ = estate.Close() }()
		cmd.Args = append(cmd.Args, "--follow", string(of.generation))
		cmd.ExtraFiles = append(cmd.ExtraFiles, estate)
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	killed := outOfMemory()
	err = startProcess(cmd)
	_, _ = theirs.Close(), theirNews.Close() // the process has its own
	if err != nil {
		_, _ = conn.Close(), news.Close()
		return nil, fmt.Errorf("start the server: %w", err)
	}
	s := newServerClient(conn, cmd)
	go func() {
		defer func() { _ = news.Close() }()
		if err := news.Serve(desk); err != nil {
			logger.Warn("the server's news broke off", "err", err)
		}
	}()
	go func() {
		err := cmd.Wait()
		if err != nil && !crashed(err) {
			s.starved = outOfMemory() - killed
		}
		s.end(err)
		logger.Info("the server has ended", "pid", cmd.Process.Pid, "why", s.obituary())
		_ = news.Close()
	}()
	return s, nil
}

func (s *serverClient) call(method string, in, out any, fds ...int) error {
	got, err := s.callWithin(callDeadline, method, in, out, fds...)
	wire.CloseAll(got)
	return err
}

func (s *serverClient) callWithin(d time.Duration, method string, in, out any, fds ...int) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.conn.Call(ctx, method, in, out, fds...)
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

// hasDied tells, after a call that failed, whether it was by the server's death. A connection breaks before its process has ended.
func (s *serverClient) hasDied(err error) bool {
	var answered *wire.RemoteError
	if !errors.As(err, &answered) && !errors.Is(err, context.DeadlineExceeded) {
		select {
		case <-s.dead:
		case <-time.After(callDeadline):
		}
	}
	return !s.alive()
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

// end marks a server as ended. The connection is closed here: its other end may still
// be open in a holder, so that no call would see the server's death.
func (s *serverClient) end(why error) {
	s.ending.Do(func() {
		s.why = why
		close(s.dead)
		_ = s.conn.Close()
	})
}

// watch is for an inherited server, which is no child of this process.
func (s *serverClient) watch(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("server %d: %w", pid, err)
	}
	go func() {
		defer func() { _ = unix.Close(pidfd) }()
		for !isClosed(s.dead) {
			if ended, err := holder.Ended(pidfd, time.Second); err == nil && ended {
				s.end(errors.New("killed"))
			}
		}
	}()
	return nil
}
