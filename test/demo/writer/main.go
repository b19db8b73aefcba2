// Command writer is the demo's target: a program that holds two files open for
// as long as it lives and makes them durable over and over. It says on standard
// output, as one JSON object per round, what the kernel told it.
//
//	writer DIR
//
// DIR/log is a descriptor opened once: a line is appended and fsynced each
// round. DIR/map is a shared memory map: its counter grows and is msynced.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Round is what one round came to; an empty error name means that it worked.
type Round struct {
	N     uint64 `json:"n"`
	FD    int    `json:"fd"`
	Write string `json:"write"`
	Fsync string `json:"fsync"`
	Msync string `json:"msync"`
}

func main() {
	fmt.Fprintln(os.Stderr, "writer:", write(os.Args[1:]))
	os.Exit(1)
}

// write goes on until it is killed or something other than what it reports fails.
func write(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: writer DIR")
	}
	log, err := unix.Open(filepath.Join(args[0], "log"), unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	file, err := unix.Open(filepath.Join(args[0], "map"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open map: %w", err)
	}
	if err := unix.Ftruncate(file, 4096); err != nil {
		return fmt.Errorf("size of map: %w", err)
	}
	counter, err := unix.Mmap(file, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if err := unix.Close(file); err != nil { // only the map holds it now
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for n := uint64(1); ; n++ {
		r := Round{N: n, FD: log}
		_, err := unix.Write(log, fmt.Appendf(nil, "%08d\n", n))
		r.Write = unix.ErrnoName(errno(err))
		r.Fsync = unix.ErrnoName(errno(unix.Fsync(log)))
		binary.LittleEndian.PutUint64(counter, n)
		r.Msync = unix.ErrnoName(errno(unix.Msync(counter, unix.MS_SYNC)))
		if err := out.Encode(r); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func errno(err error) unix.Errno {
	e, _ := err.(unix.Errno) // x/sys/unix returns nothing else
	return e
}
