package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A program that runs from a file is bound to it by the maps of its code, which
// are exchanged as other maps are, and by mm->exe_file, what /proc/PID/exe leads
// to. The kernel gives that another file by prctl(2), when no map of the old one
// is left, and only for a process with a capability for it.

// scanExecutable looks at what a thread's memory was started from; nil if it is not part of the swap.
func (s *scanner) scanExecutable(pid, tid int) (*place, error) {
	path := procPath(tid, "exe")
	link, err := readLink(path)
	if err == nil && strings.HasPrefix(link, "/") {
		var id identity
		if id, err = identify(path); err == nil {
			o := Object{PID: pid, TID: tid, Kind: Executable, FD: -1, MountID: id.mountID, Dev: id.dev, Ino: id.ino, Mode: id.mode, Flags: unix.O_RDONLY}
			o.Path, o.Deleted = cutDeleted(link)
			if !s.o.Match(&o) {
				return nil, nil
			}
			flags := unix.O_RDONLY
			if s.o.MapsByPath {
				flags = unix.O_PATH
			}
			it, err := s.placeItem(&o, path, flags)
			if err == nil {
				return &place{obj: o, item: it}, nil
			}
			if s.o.RequireRoom && noRoom(err) {
				return nil, err
			}
			if !gone(err) {
				s.skip(o, err.Error())
			}
			return nil, nil
		}
	}
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("executable of process %d: %w", pid, err)
	}
	return nil, nil
}

// readBreak asks for the program break, which the kernel shows nowhere else.
func (j *job) readBreak() error {
	if j.mem == nil || j.mem.exe == nil {
		return nil
	}
	b := j.r.batch()
	b.add(unix.SYS_BRK, 0)
	if err := b.run(); err != nil {
		return err
	}
	j.brk = uint64(b.calls[0].ret)
	return nil
}

// changeExecutable adds the calls that give the process another executable, and
// returns their places in the batch. All maps of the old one must have gone by
// then (replace_mm_exe_file, kernel/fork.c). The first needs
// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace of the process,
// the second CAP_SYS_RESOURCE in the initial one (prctl_set_mm_map and
// prctl_set_mm, kernel/sys.c).
func (j *job) changeExecutable(b *batch, which pick) ([]int, error) {
	if j.mem == nil || j.mem.exe == nil {
		return nil, nil
	}
	fd := j.dirs[which(j.mem.exe.item).fd]
	layout, err := memoryLayout(j.t.tid, j.brk, fd)
	if err != nil {
		if gone(err) {
			return nil, errTargetGone
		}
		return nil, err
	}
	b.add(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, b.bytes(layout), uint64(len(layout)), 0).mayFail = true
	b.add(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_EXE_FILE, uint64(fd), 0, 0).mayFail = true
	return []int{len(b.calls) - 2, len(b.calls) - 1}, nil
}

// checkExecutable takes note of a process that may not have another executable.
func (j *job) checkExecutable(b *batch, calls []int) {
	if len(calls) == 0 {
		return
	}
	var why syscall.Errno
	for _, i := range calls {
		e := b.calls[i].errno()
		if e == 0 {
			return
		}
		if !errors.Is(e, syscall.EPERM) && !errors.Is(e, syscall.EINVAL) || why == 0 { // EINVAL: a kernel without CONFIG_CHECKPOINT_RESTORE
			why = e
		}
	}
	reason := fmt.Sprintf("process %d (%s) was started from it, and its executable could not be exchanged (%v)", j.p.pid, j.p.comm, why)
	if errors.Is(why, syscall.EPERM) {
		reason = fmt.Sprintf("process %d (%s) was started from it, and lacks CAP_CHECKPOINT_RESTORE, without which a process cannot have another executable", j.p.pid, j.p.comm)
	}
	j.refused = append(j.refused, ObjectReport{Object: j.mem.exe.obj, Reason: reason})
}

// keepChangedExecutable leaves an executable alone, in a rollback, that is the old one still.
func (j *job) keepChangedExecutable() {
	if j.mem == nil || j.mem.exe == nil {
		return
	}
	o := &j.mem.exe.obj
	id, err := identify(procPath(j.mem.tid, "exe"))
	if err == nil && id.mountID == o.MountID && id.dev == o.Dev && id.ino == o.Ino {
		kept := *j.mem
		kept.exe = nil
		j.mem = &kept
	}
}

// memoryLayout is a struct prctl_mm_map (include/uapi/linux/prctl.h) that says of
// a process what is so already, with another executable.
func memoryLayout(tid int, brk uint64, exe int) ([]byte, error) {
	text, err := readProc(procPath(tid, "stat"))
	if err != nil {
		return nil, err
	}
	return layoutOf(text, brk, exe)
}

// Fields of /proc/PID/stat that say where things lie, counted from 1 (proc_pid_stat(5)).
const (
	statStartCode, statEndCode, statStartStack         = 26, 27, 28
	statStartData, statEndData, statStartBrk           = 45, 46, 47
	statArgStart, statArgEnd, statEnvStart, statEnvEnd = 48, 49, 50, 51
)

// layoutOf makes it of the text of /proc/PID/stat.
func layoutOf(stat []byte, brk uint64, exe int) ([]byte, error) {
	i := bytes.LastIndexByte(stat, ')') // the name may hold anything
	if i < 0 {
		return nil, fmt.Errorf("no name in %q", stat)
	}
	f := strings.Fields(string(stat[i+1:]))
	const first = 3 // number of the field after the name
	if len(f) < statEnvEnd-first+1 {
		return nil, fmt.Errorf("only %d fields in %q", len(f), stat)
	}
	var b []byte
	for _, n := range []int{statStartCode, statEndCode, statStartData, statEndData, statStartBrk, 0, statStartStack, statArgStart, statArgEnd, statEnvStart, statEnvEnd} {
		v := brk
		if n > 0 {
			var err error
			if v, err = strconv.ParseUint(f[n-first], 10, 64); err != nil {
				return nil, fmt.Errorf("field %d of %q: %w", n, stat, err)
			}
		}
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, 0) // auxv: as it is
	b = binary.LittleEndian.AppendUint32(b, 0) // its size
	return binary.LittleEndian.AppendUint32(b, uint32(exe)), nil
}

// exchanges reports that the map is going to be another one: no place for code of ours.
func (p *process) exchanges(l mapLine) bool {
	for _, s := range p.avoid {
		if s.start < l.end && l.start < s.end {
			return true
		}
	}
	return false
}
