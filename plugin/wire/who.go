package wire

import (
	"context"
	"net"
	"os"
)

// peerKey is where a request's context has who sent it.
type peerKey struct{}

type sender struct {
	conn *net.UnixConn
	peer Peer
}

// WithPeer notes who is at the other end of a connection, for Who and HungUp; it is an http.Server's ConnContext.
func WithPeer(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok {
		if p, err := PeerOf(u); err == nil {
			return context.WithValue(ctx, peerKey{}, sender{u, p})
		}
	}
	return ctx
}

// Who describes who sent a request over a unix socket, for a log; empty: nobody knows.
func Who(ctx context.Context) string {
	if s, ok := ctx.Value(peerKey{}).(sender); ok {
		return s.peer.String()
	}
	return ""
}

// HungUp reports that who sent a request over a unix socket waits for no answer any more.
func HungUp(ctx context.Context) bool {
	s, ok := ctx.Value(peerKey{}).(sender)
	return ok && hungUp(s.conn)
}

// Self describes this process as Who describes another one.
func Self() string { return Peer{UID: uint32(os.Getuid()), PID: os.Getpid()}.String() }
