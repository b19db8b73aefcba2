package graft

// MountedLayer is a layer that a process sees.
type MountedLayer struct {
	// ID is the graft's, Path where it is mounted.
	ID, Path string
}

// LayersOf lists the layers in the mount namespace of a process.
func LayersOf(pid int) ([]MountedLayer, error) {
	mounts, err := readMounts(pid)
	if err != nil {
		return nil, err
	}
	var all []MountedLayer
	seen := map[string]bool{}
	for _, m := range mounts {
		if m.FSType == layerType && !seen[m.Source] { // one over "/" is mounted twice
			seen[m.Source] = true
			all = append(all, MountedLayer{ID: m.Source, Path: m.Mountpoint})
		}
	}
	return all, nil
}

// Children lists the processes that a process has started and that run.
func Children(pid int) ([]int, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	var children []int
	for _, p := range all {
		if up, ok := parentOf(p); ok && up == pid {
			children = append(children, p)
		}
	}
	return children, nil
}
