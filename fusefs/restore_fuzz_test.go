package fusefs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// wholeState is that of a server with a file that is open, has locks, was forgotten and met a fault. take gives its descriptors.
func wholeState(t testing.TB) (s *State, take func(int) (int, error)) {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	fds := []int{}
	for _, p := range []string{dir, name} {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fds = append(fds, pair[:]...)
	t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	s = newState(t)
	table, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	nodes := []*node{}
	for i, kind := range []uint32{unix.S_IFDIR, unix.S_IFREG} {
		var st unix.Statx_t
		if err := unix.Statx(fds[i], "", unix.AT_EMPTY_PATH, attrMask, &st); err != nil {
			t.Fatal(err)
		}
		n := &node{id: uint64(i + 1), fd: i, kind: kind, key: keyOf(&st), lookups: 1}
		table.node(n)
		nodes = append(nodes, n)
	}
	table.name(nodes[0], "file", nodes[1])
	nodes[1].last = "/data/old"
	table.last(nodes[1])
	h := &handle{id: 1, node: nodes[1], fd: 1, mode: modeDirect}
	table.handle(h)
	table.owner(&lockOwner{id: 3, fd: 1, pid: 1}, nodes[1].key)
	table.forgotten(&forgottenNode{id: 9, key: nodes[1].key, handle: unix.NewFileHandle(1, make([]byte, 8)), path: "/data/gone"})
	table.keptRule()
	table.ruleOf(&ruleSlot{start: 5})
	table.fault(&FaultCount{Rule: "r", Op: policy.OpRead, Action: ActionLatency, N: 3, Delay: time.Second})
	init := message(opInit, 0, 2, make([]byte, unsafe.Sizeof(fuse.InitIn{})-40))
	binary.NativeEndian.PutUint32(init[40:], 7)
	binary.NativeEndian.PutUint32(init[44:], 45)
	table.handshake(init, 0)
	table.head.device.Store(2)
	table.head.nextNode.Store(10)
	table.head.lastHandle.Store(1)
	return s, func(fd int) (int, error) {
		if fd < 0 || fd > 2 {
			return -1, unix.EBADF
		}
		return unix.FcntlInt(uintptr(fds[fd]), unix.F_DUPFD_CLOEXEC, 3)
	}
}

// Where the slots of wholeState begin: a chunk for each size, after the head.
const fuzzedChunks = 4

// FuzzRestore changes the state that a dead server has left, at two places: it is refused, or a layer is made of it. Nothing is left open
// either way.
func FuzzRestore(f *testing.F) {
	f.Add(uint32(0), []byte{}, uint32(0), []byte{})
	for _, at := range []uint32{0, 8, 16, 64, 128, chunkBytes, chunkBytes + 8, 2 * chunkBytes, 2*chunkBytes + 16, 3*chunkBytes + 24} {
		f.Add(at, []byte{0xff}, at+16, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		f.Add(at, []byte{0, 0, 0, 0, 0, 0, 0, 0}, uint32(0), []byte{})
		f.Add(at, []byte{}, at+24, []byte{0xff, 0xff, 0xff, 0x7f}) // how long a text is
		f.Add(at, []byte{byte(slotForgotten), 1, 0, 0, 0, 0, 0, 0}, at+32, []byte{1, 2, 3, 4})
	}
	f.Fuzz(func(t *testing.T, at uint32, a []byte, at2 uint32, b []byte) {
		s, take := wholeState(t)
		mem, err := mapTable(s.files[stateTable0], unix.MAP_SHARED, (1+fuzzedChunks)*chunkBytes)
		if err != nil {
			t.Fatal(err)
		}
		copy(mem.mem[chunkBytes+int(at%(fuzzedChunks*chunkBytes)):], a)
		copy(mem.mem[chunkBytes+int(at2%(fuzzedChunks*chunkBytes)):], b)
		mem.close()
		before := openFilesOf(t)
		left, err := s.Left() // who stands in reads it, too
		if err == nil && len(a)+len(b) == 0 && (len(left.Files) != 1 || len(left.Owners) != 1 || len(left.Faults) != 1) {
			t.Errorf("left are %+v", left)
		}
		l, err := Restore(Options{Prefix: "/data", State: s}, take)
		if err == nil {
			for _, n := range l.nodes.byID {
				_ = l.nodes.paths(n)
			}
			if _, err := l.Backing(1, "file"); err == nil {
				t.Error("there is an inode 1")
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		} else if len(a)+len(b) == 0 {
			t.Error(err)
		}
		if now := openFilesOf(t); now != before {
			t.Errorf("%d descriptors are open, %d were (%v)", now, before, err)
		}
	})
}

// openFilesOf counts this process's descriptors.
func openFilesOf(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
