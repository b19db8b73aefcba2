package wire

import (
	"context"
	"net"
	"os"
)

// peerKey is where a request's context has its peer.
type peerKey struct{}

// WithPeer notes who is at the other end of a connection, for Who; it is an http.Server's ConnContext.
func WithPeer(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok {
		if p, err := PeerOf(u); err == nil {
			return context.WithValue(ctx, peerKey{}, p)
		}
	}
	return ctx
}

// Who describes who sent a request over a unix socket, for a log; empty: nobody knows.
func Who(ctx context.Context) string {
	if p, ok := ctx.Value(peerKey{}).(Peer); ok {
		return p.String()
	}
	return ""
}

// Self describes this process as Who describes another one.
func Self() string { return Peer{UID: uint32(os.Getuid()), PID: os.Getpid()}.String() }
