package fusefs

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// aclNames begins the names of the attributes that hold access control lists.
// The kernel reads them to check permissions; faulting these reads would fail
// open(2) and the like instead of getxattr(2).
const aclNames = "system.posix_acl_"

func (l *Layer) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := l.nodes.get(h.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	if !strings.HasPrefix(name, aclNames) {
		if e := l.node(request{cancel: cancel, header: h, op: policy.OpGetxattr, size: int64(len(dest))}, n); e != 0 {
			return 0, fuse.Status(e)
		}
	}
	size, err := unix.Getxattr(magic(n.fd), name, dest)
	if err != nil {
		return 0, status(err)
	}
	return uint32(size), fuse.OK
}

func (l *Layer) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := l.nodes.get(h.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	if e := l.node(request{cancel: cancel, header: h, op: policy.OpListxattr, size: int64(len(dest))}, n); e != 0 {
		return 0, fuse.Status(e)
	}
	if lacks(h.Pid, unix.CAP_SYS_ADMIN) {
		return listUntrusted(n.fd, dest)
	}
	size, err := unix.Listxattr(magic(n.fd), dest)
	if err != nil {
		return 0, status(err)
	}
	return uint32(size), fuse.OK
}

// listUntrusted lists the attributes as someone without CAP_SYS_ADMIN sees
// them: file systems leave trusted ones out (xattr(7)).
func listUntrusted(fd int, dest []byte) (uint32, fuse.Status) {
	all := make([]byte, xattrListMax)
	size, err := unix.Listxattr(magic(fd), all)
	if err != nil {
		return 0, status(err)
	}
	var list []byte
	for name := range bytes.SplitAfterSeq(all[:size], []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			list = append(list, name...)
		}
	}
	if len(dest) > 0 && len(dest) < len(list) {
		return 0, fuse.Status(unix.ERANGE)
	}
	copy(dest, list)
	return uint32(len(list)), fuse.OK
}

// xattrListMax is XATTR_LIST_MAX of include/uapi/linux/limits.h.
const xattrListMax = 65536

func (l *Layer) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpSetxattr, size: int64(len(data))}, n); e != 0 {
		return fuse.Status(e)
	}
	again := l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	err := retry(func() error { return unix.Setxattr(magic(n.fd), name, data, int(in.Flags)) })
	reach(placeDone, &in.InHeader)
	if err != nil && (err != unix.EEXIST || !again || !hasAttr(n, name, data)) {
		return status(err)
	}
	if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 && name == accessACL { // set for default lists, too, which leave the mode alone
		return status(clearSetGID(n.fd))
	}
	return fuse.OK
}

// clearSetGID clears the set-group-ID bit for a caller that may not keep it when it changes the access list.
func clearSetGID(fd int) error {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_ISGID == 0 {
		return nil
	}
	return retry(func() error { return unix.Fchmodat(unix.AT_FDCWD, magic(fd), uint32(st.Mode)&0o7777&^unix.S_ISGID, 0) })
}

func (l *Layer) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	n := l.nodes.get(h.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.node(request{cancel: cancel, header: h, op: policy.OpRemovexattr}, n); e != 0 {
		return fuse.Status(e)
	}
	again := l.ledger.slot(h).begin(h, inodeID{}, inodeID{})
	err := retry(func() error { return unix.Removexattr(magic(n.fd), name) })
	reach(placeDone, h)
	if err == unix.ENODATA && again { // it is gone, as was asked for
		return fuse.OK
	}
	return status(err)
}

// hasAttr reports whether an attribute has this value.
func hasAttr(n *node, name string, value []byte) bool {
	have := make([]byte, len(value)+1)
	size, err := unix.Getxattr(magic(n.fd), name, have)
	return err == nil && bytes.Equal(have[:size], value)
}
