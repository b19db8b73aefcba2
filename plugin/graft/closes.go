package graft

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// A swap closes the target's descriptors: what dup3(2) replaces is closed. On a FUSE file system the thread waits then until the file
// system's server has answered, whatever signal comes (fuse_flush of fs/fuse/file.c sets args.force, request_wait_answer of
// fs/fuse/dev.c; Linux 6.18); on a network file system it may wait for the other side. In the middle of an exchange nothing could be
// done about that any more. So before the target is stopped, copies of such descriptors are closed by a process that can be given up.

// OpenFile is a descriptor of a process.
type OpenFile struct{ PID, FD int }

// Closer takes copies of descriptors and closes them, one after the other. It returns how many it has closed: all, but
// for a file system that does not answer.
type Closer func(files []OpenFile) (closed int, err error)

// mayHang names file systems whose closes wait for somebody else.
func mayHang(m *mountinfo.Info) bool {
	switch m.FSType {
	case "fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "gfs2", "ocfs2":
		return true
	}
	return strings.HasPrefix(m.FSType, "fuse.") && m.FSType != layerType
}

// mostClosed is of how many files copies are closed: who does not answer for one does so for others, mostly.
const mostClosed = 200

// checkCloses fails if a file of the target that a swap would close cannot be closed now.
func (a *attachment) checkCloses() error {
	slow := map[inode]string{} // by device
	for _, m := range a.place.mounts {
		if mayHang(m) {
			slow[inode{uint32(m.Major), uint32(m.Minor), 0}] = fmt.Sprintf("%s at %s", m.FSType, m.Mountpoint)
		}
	}
	if len(slow) == 0 || a.Close == nil {
		return nil
	}
	pids, err := a.Target.Swappable()
	if err != nil {
		return err
	}
	var files []OpenFile
	var names []string
	seen := map[inode]bool{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, _ := os.ReadDir(dir) // it may have ended
		for _, e := range fds {
			i, path, fs := a.closesOn(slow, filepath.Join(dir, e.Name()))
			fd, err := strconv.Atoi(e.Name())
			if err != nil || fs == "" || seen[i] {
				continue
			}
			seen[i] = true
			files = append(files, OpenFile{pid, fd})
			names = append(names, fmt.Sprintf("descriptor %d of process %d (%s, on %s)", fd, pid, path, fs))
		}
	}
	files = slices.Clip(files[:min(len(files), mostClosed)])
	if len(files) == 0 {
		return nil
	}
	closed, err := a.Close(files)
	if err != nil {
		return fmt.Errorf("close copies of the target's files: %w", err)
	}
	if closed < len(files) {
		return fmt.Errorf("%s cannot be closed: that file system does not answer. Nothing was changed; try again when it does", names[closed])
	}
	return nil
}

// closesOn tells which file below the path a link of /proc/PID/fd leads to, and on which of the slow file systems it is; fs is empty for any other.
func (a *attachment) closesOn(slow map[inode]string, link string) (i inode, path, fs string) {
	path, err := os.Readlink(link)
	if _, below := a.place.relative(strings.TrimSuffix(path, " (deleted)")); err != nil || !below {
		return i, path, ""
	}
	if i, err = identify(link); err != nil { // asks no file system
		return i, path, ""
	}
	return i, path, slow[inode{i.major, i.minor, 0}]
}

// CloseCopies is a Closer that may be stuck for ever. It calls done after each file.
func CloseCopies(files []OpenFile, done func() error) error {
	for _, f := range files {
		pidfd, err := unix.PidfdOpen(f.PID, 0)
		if err == nil {
			var fd int
			if fd, err = unix.PidfdGetfd(pidfd, f.FD, 0); err == nil {
				_ = unix.Close(fd) // what it says is for who wrote to the file
			}
			_ = unix.Close(pidfd)
		}
		// An error is no reason to stop: the file was closed meanwhile, or the process has ended.
		if err := done(); err != nil {
			return err
		}
	}
	return nil
}
