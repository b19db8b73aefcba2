package plugin

import (
	"fmt"
	"net"
	"os"
)

// notifySystemd tells the service manager about a change of state, as in
// sd_notify(3); without $NOTIFY_SOCKET nobody asked for it.
func notifySystemd(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	// net takes a leading @ for the abstract namespace, as systemd writes it.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager at %s: %w", path, err)
	}
	defer func() { _ = c.Close() }() // the message is one datagram, and its error counts
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager at %s: %w", path, err)
	}
	return nil
}
