// Package wire is how faultgraft's processes talk: a listener that lets only
// root in, and calls with file descriptors over a socket pair.
package wire

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ListenRoot listens on a unix socket that only root can use: mode 0600, and
// the peer's credentials (SO_PEERCRED, unix(7)) are checked before a byte is
// read. A socket file that nobody listens on any more is replaced.
func ListenRoot(path string, log *slog.Logger) (net.Listener, error) {
	if c, err := DialUnix(path); err == nil {
		_ = c.Close() // it only proved that somebody listens
		return nil, fmt.Errorf("listen on %s: another process listens there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: remove the stale socket: %w", path, err)
	}
	dir, done, err := shortDir(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, filepath.Base(path)), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the name it knows goes through a descriptor that is closed by then
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &rootListener{UnixListener: l, path: path, log: log}, nil
}

// DialUnix connects to a unix socket of any path length.
func DialUnix(path string) (net.Conn, error) {
	dir, done, err := shortDir(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, filepath.Base(path)), Net: "unix"})
}

// shortDir names path's directory through a descriptor, because sun_path holds 108 bytes only (unix(7)).
func shortDir(path string) (string, func(), error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { _ = unix.Close(fd) }, nil
}

type rootListener struct {
	*net.UnixListener
	path string
	log  *slog.Logger
}

// Accept returns the next connection of a root peer; others are closed unread.
func (l *rootListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := PeerOf(c)
		if err == nil && peer.UID == 0 {
			return c, nil
		}
		l.log.Warn("refused a peer that is not root", "socket", l.path, "uid", peer.UID, "err", err)
		_ = c.Close()
	}
}

// Close stops listening and removes the socket file.
func (l *rootListener) Close() error {
	err := l.UnixListener.Close()
	if rerr := os.Remove(l.path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Peer is the process at the other end of a unix socket, as it was when it connected.
type Peer struct {
	UID uint32
	// PID is 0 for a process that this PID namespace does not see.
	PID int
}

// PeerOf asks the kernel who is at the other end (SO_PEERCRED, unix(7)).
func PeerOf(c *net.UnixConn) (Peer, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, cerr
	}
	return Peer{UID: cred.Uid, PID: int(cred.Pid)}, nil
}

// String describes the peer for a log: its user, also the one that logged in, its PID and program.
func (p Peer) String() string {
	s := fmt.Sprintf("uid %d", p.UID)
	if p.PID <= 0 {
		return s
	}
	// The process may have ended: then there is less to say.
	proc := fmt.Sprintf("/proc/%d/", p.PID)
	const unset = "4294967295" // credentials(7): no one logged in
	if b, err := os.ReadFile(proc + "loginuid"); err == nil && string(b) != unset && string(b) != fmt.Sprint(p.UID) {
		s += fmt.Sprintf(" (logged in as uid %s)", b)
	}
	s += fmt.Sprintf(", pid %d", p.PID)
	if b, err := os.ReadFile(proc + "comm"); err == nil {
		s += fmt.Sprintf(" (%s)", strings.TrimSpace(string(b)))
	}
	return s
}
