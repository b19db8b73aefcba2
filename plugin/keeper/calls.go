package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/tracer"
)

// The calls between keeper, server and swapper. Descriptors ride beside them.
const (
	// keeper to server
	callServe   = "serve"   // serveCall, fds: device, backing, mount[, the other mount of one over "/"][, peer group]
	callRules   = "rules"   // rulesCall
	callStatus  = "status"  // layerCall -> []RuleStatus
	callFaults  = "faults"  // layerCall -> []FaultCount
	callRetired = "retired" // layerCall -> []graft.RetiredFile
	callRelease = "release" // releaseCall -> int (operations)
	callSwapper = "swapper" // swapperCall, fds: the server's end of a pair with the swapper
	callEstate  = "estate"  // -> byte (generation of the claim), fds: the memory of its estate
	callRestore = "restore" // -> []restoredLayer: of the dead server that it follows
	callResume  = "resume"  // -> resumed
	callInherit = "inherit" // inheritCall -> inheritance, fds: of its layers; by a keeper that the server has started
	callEnd     = "end"     // endCall -> bool (lingers): let go of a layer that was taken off
	// server to keeper, on a pair of its own
	callNews = "news" // []newsCall
	// swapper to server, on its pair
	callArm         = "arm"          // armCall, fds: the descriptions
	callDisarm      = "disarm"       // int (tid) -> []graft.Adopted
	callOpenFiles   = "open files"   // []uint64 (handles) -> []fileAnswer: of as many as it could look at at once, fds: their descriptions, where there is no error
	callBacking     = "backing"      // backingCall -> fds: O_PATH
	callLocks       = "locks"        // locksCall -> []tracer.Lock
	callLockedFiles = "locked files" // -> []uint64 (inode numbers)
	callEndFlushes  = "end flushes"  // -> bool
	callGuardLocks  = "guard locks"  // guardCall
	callKeepLocks   = "keep locks"   // bool -> bool
	callMoved       = "moved"        // nodes of retired files
	// swapper to keeper
	callJob     = "job"     // -> job, fds: mount, backing[, the other mount of one over "/"][, peer group], none for an attach
	callLayer   = "layer"   // graft.LayerInfo, fds: device, mount, backing[, the other mount of one over "/"][, peer group]
	callAdopted = "adopted" // []uint64 (handles), fds: the descriptions, in that order
	callRemains = "remains" // -> remainsAnswer: what a dead server had open
	callKeep    = "keep"    // fds: files that the swapper opened -> []int: their numbers here
	callOwners  = "owners"  // int (offset) -> []lockOwner, fds: descriptions with their locks
	callResult  = "result"  // result
)

// callDeadline bounds calls that do no I/O on the target's files.
const callDeadline = 10 * time.Second

// batch is how many descriptors ride on one call.
const batch = 200

type serveCall struct {
	Layer  string          `json:"layer"` // the graft's id
	Info   graft.LayerInfo `json:"info"`
	Target Target          `json:"target"`
	Place  graft.Target    `json:"place"`
}

type rulesCall struct {
	Layer string        `json:"layer"`
	Rules []policy.Rule `json:"rules"`
	Start time.Time     `json:"-"` // travels as a time of CLOCK_MONOTONIC, see MarshalJSON
	// Coming: the rules are not in force yet, but files are opened as they need it.
	Coming bool `json:"coming,omitempty"`
}

type layerCall struct {
	Layer string `json:"layer"`
}

type endCall struct {
	Layer string `json:"layer"`
	// Wait is how long its last users may take to go until the layer is said to linger.
	Wait time.Duration `json:"wait"`
}

type releaseCall struct {
	Layer string `json:"layer"`
	Rule  string `json:"rule,omitempty"` // empty: all
}

type swapperCall struct {
	Layer string `json:"layer"`
	PID   int    `json:"pid"`
	// Moves: it moves what is open of retired files.
	Moves bool `json:"moves,omitempty"`
}

// newsCall is one thing that happened to a layer.
type newsCall struct {
	Layer string `json:"layer"`
	// Released is the handle of an adopted file that saw its last close.
	Released uint64 `json:"released,omitempty"`
	// Retired: a file that is open got a name by which a rule can match it, and has to be moved.
	Retired bool `json:"retired,omitempty"`
	// Resent is how many requests came again that a dead server had not answered.
	Resent uint64 `json:"resent,omitempty"`
	// Unused: the last user of a layer that was taken off has gone.
	Unused bool `json:"unused,omitempty"`
	// Crowded: the server has so many descriptors that the layer is about to refuse files, see crowd.
	Crowded crowd `json:"crowded,omitzero"`
}

type armCall struct {
	TID int              `json:"tid"`
	All []graft.Adoption `json:"all"`
}

// fileAnswer is what there is to say of an open file, if its description could not be had.
type fileAnswer struct {
	Error string `json:"error,omitempty"`
}

type backingCall struct {
	Ino  uint64 `json:"ino"`
	Path string `json:"path"`
}

type guardCall struct {
	Phase   tracer.LockPhase    `json:"phase"`
	Files   []graft.GuardedFile `json:"files"`
	Leaving bool                `json:"leaving,omitempty"`
}

type locksCall struct {
	PID int    `json:"pid"`
	TID int    `json:"tid"`
	Ino uint64 `json:"ino"`
	// Keep: closes of the process leave them alone, see graft.Server.
	Keep bool `json:"keep,omitempty"`
}

// job is what a swapper has to do.
type job struct {
	Graft  string       `json:"graft"`
	Target graft.Target `json:"target"`
	Path   string       `json:"path"`
	graft.Limits
	Detach bool `json:"detach,omitempty"`
	Dead   bool `json:"dead,omitempty"` // detach: the server is dead
	Off    bool `json:"off,omitempty"`  // detach: the layer is off already, and lingers
	// StoodIn: somebody tells in the dead server's stead which handle an open file of the layer has.
	StoodIn bool `json:"stoodIn,omitempty"`
	// Left is what the graft could not put onto the layer, for a detach.
	Left []tracer.Object `json:"left,omitempty"`
	// Reswap are the files of the layer to move, instead of a graft or an ungraft.
	Reswap []graft.RetiredFile `json:"reswap,omitempty"`
	Layer  graft.LayerInfo     `json:"layer"`
}

// remainsAnswer are descriptors of the keeper, of what a dead server had open. They stay what they are as long as the swapper is at work.
type remainsAnswer struct {
	Keeper       int            `json:"keeper"` // its process id
	Descriptions map[uint64]int `json:"descriptions"`
	Objects      []int          `json:"objects"`
}

type result struct {
	Report *graft.Report `json:"report,omitempty"`
	Error  string        `json:"error,omitempty"`
	// Left: the error is a graft.ErrLeft.
	Left bool `json:"left,omitempty"`
}

// serverLink is a swapper's end of the pair with the server.
type serverLink struct {
	conn *wire.Conn
	at   *progress
}

var _ graft.Server = serverLink{}

func (s serverLink) call(method string, in, out any, fds ...int) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	defer s.at.on()
	return s.conn.Call(ctx, method, in, out, fds...)
}

func (s serverLink) Arm(tid int, all []graft.Adoption) error {
	var fds []int
	for _, a := range all {
		fds = append(fds, a.File)
	}
	_, err := s.call(callArm, armCall{TID: tid, All: all}, nil, fds...)
	return err
}

func (s serverLink) Disarm(tid int) ([]graft.Adopted, error) {
	var all []graft.Adopted
	_, err := s.call(callDisarm, tid, &all)
	return all, err
}

func (s serverLink) Descriptions(handles []uint64) []tracer.Replacement {
	all := make([]tracer.Replacement, 0, len(handles))
	for len(all) < len(handles) {
		some, err := s.someDescriptions(handles[len(all):])
		all = append(all, some...)
		for err != nil && len(all) < len(handles) {
			all = append(all, tracer.Replacement{FD: -1, Err: err})
		}
	}
	return all
}

// someDescriptions answers for the first of them, at least one.
func (s serverLink) someDescriptions(handles []uint64) ([]tracer.Replacement, error) {
	var answers []fileAnswer
	fds, err := s.call(callOpenFiles, handles, &answers)
	if err != nil {
		return nil, err
	}
	var all []tracer.Replacement
	left := fds
	for _, a := range answers {
		switch {
		case a.Error != "":
			all = append(all, tracer.Replacement{FD: -1, Err: errors.New(a.Error)})
		case len(left) > 0:
			all = append(all, tracer.Replacement{FD: left[0]})
			left = left[1:]
		}
	}
	if len(all) == 0 || len(all) != len(answers) || len(all) > len(handles) || len(left) > 0 {
		wire.CloseAll(fds)
		return nil, fmt.Errorf("%d answers of the server with %d descriptors, for %d open files", len(answers), len(fds), len(handles))
	}
	return all, nil
}

func (s serverLink) Backing(ino uint64, path string) (int, error) {
	return one(s.call(callBacking, backingCall{Ino: ino, Path: path}, nil))
}

func (s serverLink) LockedFiles() ([]uint64, error) {
	var inodes []uint64
	_, err := s.call(callLockedFiles, nil, &inodes)
	return inodes, err
}

func (s serverLink) EndFlushes() (bool, error) {
	var ended bool
	_, err := s.call(callEndFlushes, nil, &ended)
	return ended, err
}

func (s serverLink) KeepLocks(on bool) (bool, error) {
	var held bool
	_, err := s.call(callKeepLocks, on, &held)
	return held, err
}

func (s serverLink) Moved(nodes []uint64) error {
	_, err := s.call(callMoved, nodes, nil)
	return err
}

func (s serverLink) GuardLocks(phase tracer.LockPhase, files []graft.GuardedFile, leaving bool) error {
	_, err := s.call(callGuardLocks, guardCall{Phase: phase, Files: files, Leaving: leaving}, nil)
	return err
}

func (s serverLink) PosixLocks(pid, tid int, ino uint64) ([]tracer.Lock, error) {
	var l []tracer.Lock
	_, err := s.call(callLocks, locksCall{PID: pid, TID: tid, Ino: ino}, &l)
	return l, err
}

func (s serverLink) LocksToKeep(pid, tid int, ino uint64) ([]tracer.Lock, error) {
	var l []tracer.Lock
	_, err := s.call(callLocks, locksCall{PID: pid, TID: tid, Ino: ino, Keep: true}, &l)
	return l, err
}

// one takes the only descriptor of an answer.
func one(fds []int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		wire.CloseAll(fds)
		return -1, errors.New("the answer carries no descriptor")
	}
	return fds[0], nil
}
