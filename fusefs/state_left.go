package fusefs

// Left is what a dead server had open of a layer, by the numbers of its descriptors in the process State.Owner. With it whoever takes
// off a layer that nobody can serve on gives back what has no path any more, and locks.
type Left struct {
	// Objects are O_PATH descriptors: of the objects below of which a file of the layer is open, and of those that have lost their name.
	Objects []int
	// Files are open files of the layer, as far as something was opened below for them.
	Files []LeftFile
	// Owners are those for which the server has POSIX locks.
	Owners []LeftOwner
	// Faults are what the layer's rules have done, see Layer.Faults.
	Faults []FaultCount
}

// LeftFile is an open file of the layer.
type LeftFile struct {
	Handle uint64 // as IoctlHandle tells it
	FD     int    // the description that it stands for
}

// LeftOwner is a process with POSIX locks on an inode. They are those of a description, see OFDLocks.
type LeftOwner struct {
	PID int
	Ino uint64
	FD  int
}

// Left reads what a server has left. It does not change it.
func (s *State) Left() (Left, error) {
	v, err := s.read()
	if err != nil {
		return Left{}, err
	}
	defer v.close()
	var l Left
	open := map[uint64]bool{}
	for _, h := range v.handles {
		open[h.at.node] = true
		if fd := h.at.fd.Load(); fd >= 0 {
			l.Files = append(l.Files, LeftFile{Handle: h.at.id, FD: int(fd)})
		}
	}
	for _, n := range v.nodes {
		if open[n.at.id] || n.at.gone.Load() {
			l.Objects = append(l.Objects, int(n.at.fd))
		}
	}
	for _, o := range v.owners {
		l.Owners = append(l.Owners, LeftOwner{PID: int(o.at.pid.Load()), Ino: o.at.ino, FD: int(o.at.fd)})
	}
	for _, f := range v.faults {
		c, err := f.at.faults()
		if err != nil {
			return Left{}, err
		}
		l.Faults = append(l.Faults, c)
	}
	return l, nil
}

// OFDLocks are the OFD locks of a description, as which a server has the POSIX locks of one owner.
func OFDLocks(fd int) ([]Lock, error) {
	spans, err := heldOFD(fd)
	if err != nil {
		return nil, err
	}
	var locks []Lock
	for _, s := range spans {
		locks = append(locks, s.lock())
	}
	return locks, nil
}
