package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// backends is how many sessions the PostgreSQL of the pause has.
const backends = 50

// postgresTarget is a PostgreSQL in a mount namespace of its own, with clients that do little.
type postgresTarget struct {
	server, clients *exec.Cmd
	said            bytes.Buffer // by the server
}

// nobody runs it: PostgreSQL refuses to run as root, and wants a user that the machine knows.
const nobody = 65534

// postgres starts a PostgreSQL with its data in dir.
func (b *bench) postgres(dir string) (pauseTarget, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, &leftOut{"PostgreSQL is not installed"}
	}
	bin := filepath.Dir(found[len(found)-1])
	// the folder above is for root only
	if err := errors.Join(os.Chmod(b.dir, 0o711), os.Chown(dir, nobody, nobody), os.Chmod(dir, 0o700)); err != nil {
		return nil, err
	}
	command := func(program string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PGHOST="+dir, "PGUSER=postgres", "PGDATABASE=postgres")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGQUIT}
		return cmd
	}
	run := func(program string, args ...string) error {
		if out, err := command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, out)
		}
		return nil
	}
	data := filepath.Join(dir, "data")
	if err := run("initdb", "--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8", "-D", data); err != nil {
		return nil, err
	}
	p := &postgresTarget{server: command("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections="+strconv.Itoa(backends+10))}
	p.server.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // and nothing that is mounted there goes elsewhere: syscall makes it private
	p.server.Stdout, p.server.Stderr = &p.said, &p.said
	if err := p.server.Start(); err != nil {
		return nil, err
	}
	ready := fmt.Errorf("no answer")
	for end := time.Now().Add(time.Minute); ready != nil && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		ready = run("psql", "-c", "SELECT 1")
	}
	err = ready
	if err == nil {
		err = run("pgbench", "-i", "-q")
	}
	if err == nil {
		// 100 transactions per second by all of them
		p.clients = command("pgbench", "-n", "-c", strconv.Itoa(backends), "-R", "100", "-T", "3600")
		err = p.clients.Start()
	}
	for end := time.Now().Add(time.Minute); err == nil; time.Sleep(100 * time.Millisecond) {
		children, cerr := os.ReadFile(fmt.Sprintf("/proc/%[1]s/task/%[1]s/children", p.pid()))
		if err = cerr; err != nil || len(strings.Fields(string(children))) > backends { // and its own helpers
			break
		}
		if time.Now().After(end) {
			err = errors.New("the backends do not come up")
		}
	}
	if err == nil {
		time.Sleep(3 * time.Second) // each has worked, and has files open
		return p, nil
	}
	p.end()
	return nil, fmt.Errorf("%w: %s", err, p.said.String())
}

func (p *postgresTarget) pid() string { return strconv.Itoa(p.server.Process.Pid) }

// end ends clients and server; what they say then is of no interest.
func (p *postgresTarget) end() {
	if p.clients != nil && p.clients.Process != nil {
		_ = p.clients.Process.Kill()
		_ = p.clients.Wait()
	}
	_ = p.server.Process.Signal(syscall.SIGINT) // a fast shutdown
	stop := time.AfterFunc(20*time.Second, func() { _ = p.server.Process.Signal(syscall.SIGQUIT) })
	_ = p.server.Wait()
	stop.Stop()
}
