package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"golang.org/x/sys/unix"
)

// place is a directory with or without something over it: a column of the table.
type place struct {
	name string
	dir  string // where programs in the holder's mount namespace see it
	back string // the directory below, as seen from outside of that namespace
	*holder
	servers []int     // who serves it
	peer    *exec.Cmd // the server, when it is ours to end
}

// peer is another pass-through file system.
type peer struct {
	name    string
	command func(back, mnt string) ([]string, error)
}

func (b *bench) peers() []peer {
	self := func(args ...string) ([]string, error) {
		exe, err := os.Executable()
		return append([]string{exe, "target-loopback"}, args...), err
	}
	return []peer{
		{"go-fuse", func(back, mnt string) ([]string, error) { return self("cached", back, mnt) }},
		{"go-fuse direct", func(back, mnt string) ([]string, error) { return self("direct", back, mnt) }},
		{"passthrough_hp", func(back, mnt string) ([]string, error) {
			cmd := exec.Command("contrib/lab/passthrough_hp.sh")
			var said bytes.Buffer
			cmd.Stderr = &said
			out, err := cmd.Output()
			if err != nil {
				return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
			}
			return []string{strings.TrimSpace(string(out)), "--foreground", back, mnt}, nil
		}},
		{"bindfs", func(back, mnt string) ([]string, error) {
			exe, err := exec.LookPath("bindfs")
			return []string{exe, "-f", back, mnt}, err
		}},
	}
}

// places makes all columns that this machine can have; those that it cannot
// are named and left out.
func (b *bench) places() ([]*place, error) {
	native, err := b.newPlace("native", false)
	if err != nil {
		return nil, err
	}
	out := []*place{native}
	for _, l := range []struct{ name, rule string }{
		{"idle", "io error=EIO op=all path=" + b.dir + "/idle/nothing/** ttl=2h"},
		{"p=0", "io error=EIO op=data p=0 ttl=2h"},
	} {
		p, err := b.newPlace(l.name, false)
		if err != nil {
			return out, err
		}
		out = append(out, p)
		if _, err := b.command("inject", "--pid", p.pid(), "--path", p.dir, l.rule); err != nil {
			return out, err
		}
		if p.servers, err = b.serversOf(p.pid()); err != nil {
			return out, err
		}
	}
	for _, peer := range b.peers() {
		p, err := b.newPlace(peer.name, true)
		if err != nil {
			return out, err
		}
		if err := p.serve(peer); err != nil {
			fmt.Printf("%s is left out: %v\n", peer.name, err)
			p.end()
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// newPlace makes the directory, and a process in a mount namespace of its own
// that stands for the program: nothing is mounted where anybody else could see it.
func (b *bench) newPlace(name string, apart bool) (*place, error) {
	p := &place{name: name, dir: filepath.Join(b.dir, strings.ReplaceAll(name, " ", "-"))}
	p.back = p.dir
	if apart { // these servers go by path: the mount must not hide what it shows
		p.back += ".back"
	}
	err := errors.Join(os.MkdirAll(p.dir, 0o755), os.MkdirAll(p.back, 0o755))
	if err == nil {
		p.holder, err = b.hold(p.dir, 0)
	}
	return p, err
}

// serve starts a peer in the place's mount namespace and waits for its mount.
func (p *place) serve(peer peer) error {
	args, err := peer.command(p.back, p.dir)
	if err != nil {
		return err
	}
	var before, now unix.Stat_t
	inside := "/proc/" + p.pid() + "/root" + p.dir
	if err := unix.Stat(inside, &before); err != nil {
		return err
	}
	var said bytes.Buffer
	p.peer = p.inside(args...)
	p.peer.Stdout, p.peer.Stderr = &said, &said
	if err := p.peer.Start(); err != nil {
		return err
	}
	ctx, ended := context.WithCancel(context.Background())
	p.atEnd = func() {
		_ = p.peer.Process.Signal(unix.SIGTERM) // it may have ended by itself
		stop := time.AfterFunc(5*time.Second, func() { _ = p.peer.Process.Kill() })
		<-ctx.Done()
		stop.Stop()
	}
	go func() {
		_ = p.peer.Wait() // what it said is what tells
		ended()
	}()
	for range 500 {
		if unix.Stat(inside, &now) == nil && now.Dev != before.Dev {
			p.servers = []int{p.peer.Process.Pid}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s", filepath.Base(args[0]), strings.TrimSpace(said.String()))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not mount", filepath.Base(args[0]))
}

// serversOf finds the server, and the keeper above it, of a target.
func (b *bench) serversOf(pid string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var keeper int
	var servers []int
	for _, f := range files {
		text, _ := os.ReadFile(f) // it may have ended
		args := strings.Split(string(text), "\x00")
		if len(args) < 4 || !strings.Contains(string(text), b.state) {
			continue
		}
		var id int
		if _, err := fmt.Sscanf(f, "/proc/%d/cmdline", &id); err != nil {
			return nil, err
		}
		switch {
		case args[1] == "keeper" && strings.Contains(string(text), "\x00pid-"+pid+"-"):
			keeper = id
		case args[1] == "server":
			servers = append(servers, id)
		}
	}
	for _, s := range servers {
		if st, err := graft.ReadStat(s); err == nil && st.PPID == keeper {
			return []int{s}, nil
		}
	}
	return nil, fmt.Errorf("no server of process %s found", pid)
}
