package graft

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A layer's connection is found by a device number, which the kernel gives to another file system
// as soon as the layer has no user any more: that one is left alone, whatever the layer's descriptors are by then.
func TestAbortOfOneLayer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	newLayer := func() *Layer {
		m, err := newFuseMount("test", unix.S_IFDIR, 0)
		if err != nil {
			t.Fatal(err)
		}
		l := &Layer{Device: m.device, Mount: m.mount, Backing: -1, Bottom: -1, PeerGroup: -1}
		if l.Info.Dev, err = device(m.mount); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, fd := range []int{l.Mount, l.Device} {
				if fd >= 0 {
					_ = unix.Close(fd)
				}
			}
		})
		return l
	}
	one, two := newLayer(), newLayer()
	mixed := *one
	mixed.Mount = two.Mount
	if err := mixed.abort(); err == nil || !strings.Contains(err.Error(), "nothing is aborted") {
		t.Errorf("a layer with the mount of another one: %v", err)
	}
	if ConnectionEnded(one.Device) || ConnectionEnded(two.Device) {
		t.Fatal("a connection was aborted")
	}
	_ = unix.Close(one.Mount) // its last user
	one.Mount = -1
	if !ConnectionEnded(one.Device) {
		t.Fatal("the connection of a file system without users has not ended")
	}
	var next *Layer
	for range 64 { // the lowest free number is given first
		if next = newLayer(); next.Info.Dev == one.Info.Dev {
			break
		}
	}
	if next.Info.Dev != one.Info.Dev {
		t.Fatalf("nobody got device number %#x", one.Info.Dev)
	}
	if err := one.abort(); err != nil {
		t.Error(err)
	}
	if ConnectionEnded(next.Device) {
		t.Error("the connection of another file system with that number was aborted")
	}
	if err := next.abort(); err != nil || !ConnectionEnded(next.Device) || ConnectionEnded(two.Device) {
		t.Errorf("%v; ended: %t, and that of another layer: %t", err, ConnectionEnded(next.Device), ConnectionEnded(two.Device))
	}
	if err := next.abort(); err != nil {
		t.Errorf("once more: %v", err)
	}
}
