package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"golang.org/x/sys/unix"
)

// estate is what a server leaves to the one that follows it, or to a keeper that
// follows both: which layers there are, and the numbers of their descriptors in the
// table that its holder has (see package holder).
type estate struct {
	Target Target       `json:"target"`
	Place  graft.Target `json:"place"`
	// Servers are those that served, and those that were about to, the oldest first.
	Servers []estateServer `json:"servers"`
	Layers  []estateLayer  `json:"layers"`
	// OOMScoreAdj is that of the server; a keeper that the holder starts has the holder's.
	OOMScoreAdj string `json:"oomScoreAdj,omitempty"`
}

// estateServer is a process with a table of descriptors.
type estateServer struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"`
	// Holder is the process that shares its table, HolderStart when that started.
	Holder      int    `json:"holder"`
	HolderStart uint64 `json:"holderStart"`
	// ClaimRead and ClaimWrite are the numbers of holder.Claim in it.
	ClaimRead  int `json:"claimRead"`
	ClaimWrite int `json:"claimWrite"`
}

// estateLayer is a layer that a server serves.
type estateLayer struct {
	Call serveCall `json:"call"`
	// Server is the process whose descriptors these numbers are.
	Server int `json:"server"`
	// State are those of fusefs.State.Files; Device is /dev/fuse, Keep are those of layerOf, Namespace is the target's mount namespace.
	State     []int `json:"state"`
	Device    int   `json:"device"`
	Keep      []int `json:"keep,omitempty"`
	Namespace int   `json:"namespace"`
	// Off: it was taken off, and is served as long as it is used.
	Off bool `json:"off,omitempty"`
}

// openHolder finds the holder of a server's table.
func (s estateServer) openHolder() (*holder.Holder, error) {
	h, err := holder.Open(s.Holder)
	if err != nil {
		return nil, err
	}
	if stat, err := graft.ReadStat(s.Holder); err != nil || stat.StartTime != s.HolderStart {
		h.Close()
		return nil, fmt.Errorf("holder %d has ended", s.Holder)
	}
	return h, nil
}

// server finds a process of the estate.
func (e *estate) server(pid int) (estateServer, bool) {
	for _, s := range e.Servers {
		if s.PID == pid {
			return s, true
		}
	}
	return estateServer{}, false
}

// layer finds a layer of the estate; nil for none.
func (e *estate) layer(id string) *estateLayer {
	for i := range e.Layers {
		if e.Layers[i].Call.Layer == id {
			return &e.Layers[i]
		}
	}
	return nil
}

// estateFile is an estate in memory that outlives the process that writes it (a
// memfd). It has room for two; what is written counts from one store on, so that a
// reader finds it whole at whatever instruction the writer was killed. One process writes it at a time.
type estateFile struct {
	fd  int
	mem []byte
}

const (
	estateMagic = 0x6661756772657374
	estateHead  = 4096
	estateRoom  = 8 << 20 // of one; what is not written takes no memory
	estateBytes = estateHead + 2*estateRoom
)

type estateHeader struct {
	magic   uint64
	current atomic.Uint64 // length of the one that counts, with estateSecond if that is the second; 0: none was written
}

const estateSecond = 1 << 63

func newEstateFile() (*estateFile, error) {
	fd, err := unix.MemfdCreate("faultgraft-estate", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory to leave to another process: %w", err)
	}
	err = unix.Ftruncate(fd, estateBytes)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("memory to leave to another process: %w", err)
	}
	f, err := mapEstate(fd)
	if err == nil {
		f.head().magic = estateMagic
	}
	return f, err
}

// openEstateFile takes over the descriptor of one.
func openEstateFile(fd int) (*estateFile, error) {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Size != estateBytes {
		_ = unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("what a server left: %d bytes", s.Size), err)
	}
	f, err := mapEstate(fd)
	if err == nil && f.head().magic != estateMagic {
		f.close()
		return nil, errors.New("what a server left is of another version of faultgraft")
	}
	return f, err
}

func mapEstate(fd int) (*estateFile, error) {
	mem, err := unix.Mmap(fd, 0, estateBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("map what a server left: %w", err)
	}
	return &estateFile{fd: fd, mem: mem}, nil
}

func (f *estateFile) head() *estateHeader { return (*estateHeader)(unsafe.Pointer(&f.mem[0])) }

// room is one of the two places.
func (f *estateFile) room(second uint64) []byte {
	at := estateHead
	if second != 0 {
		at += estateRoom
	}
	return f.mem[at : at+estateRoom]
}

// write replaces the estate.
func (f *estateFile) write(e estate) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a path of such characters would take six times the room
	if err := enc.Encode(e); err != nil {
		return err
	}
	if b.Len() > estateRoom {
		return fmt.Errorf("what another server would need to know: %d bytes, there is room for %d", b.Len(), estateRoom)
	}
	next := ^f.head().current.Load() & estateSecond
	copy(f.room(next), b.Bytes())
	f.head().current.Store(next | uint64(b.Len()))
	return nil
}

// read gives the estate as it was written last; an empty one before that.
func (f *estateFile) read() (estate, error) {
	current := f.head().current.Load()
	n := current &^ estateSecond
	if n == 0 {
		return estate{}, nil
	}
	if n > estateRoom {
		return estate{}, fmt.Errorf("what a server left is damaged: %d bytes", n)
	}
	var e estate
	if err := json.Unmarshal(f.room(current & estateSecond)[:n], &e); err != nil {
		return estate{}, fmt.Errorf("what a server left is damaged: %w", err)
	}
	for _, l := range e.Layers {
		if len(l.Keep) == 0 { // also of one that is off what lies below is kept
			return estate{}, fmt.Errorf("what a server left is damaged: of the layer of graft %q it has no descriptors", l.Call.Layer)
		}
	}
	return e, nil
}

func (f *estateFile) close() {
	_ = unix.Munmap(f.mem)
	_ = unix.Close(f.fd)
}
