package graft

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// peerGroup remembers the propagation group of a mount that is private
// while a layer lies on it: a mount made on a shared mount would appear in
// every peer, for instance on the host below a volume with rshared propagation.
type peerGroup struct {
	clone int // a detached clone that stayed in the group
}

// clonePeerGroup makes the clone that stays in the group of the mount with its
// root at fd. It runs on a thread of the namespace, as all of this does.
func clonePeerGroup(fd int) (*peerGroup, error) {
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("open_tree (to keep the propagation group): %w", err)
	}
	return &peerGroup{clone: clone}, nil
}

// leave makes the mount private.
func (g *peerGroup) leave(fd int) error {
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("mount_setattr MS_PRIVATE: %w", err)
	}
	return nil
}

// moveMountSetGroup is MOVE_MOUNT_SET_GROUP of include/uapi/linux/mount.h, Linux 5.15.
const moveMountSetGroup = 0x100

// rejoin puts the mount back into the group.
func (g *peerGroup) rejoin(fd int) error {
	err := unix.MoveMount(g.clone, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|moveMountSetGroup)
	if err != nil {
		return fmt.Errorf("move_mount MOVE_MOUNT_SET_GROUP: %w", err)
	}
	return nil
}

func (g *peerGroup) close() { _ = unix.Close(g.clone) }
