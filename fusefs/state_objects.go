package fusefs

// Objects are descriptors (O_PATH) of the process State.Owner: of the objects below of which a file of the layer is open, and of those
// that have lost their name. With them whoever takes off a layer that nobody can serve on finds what has no path any more.
func (s *State) Objects() ([]int, error) {
	v, err := s.read()
	if err != nil {
		return nil, err
	}
	defer v.close()
	open := map[uint64]bool{}
	for _, h := range v.handles {
		open[h.at.node] = true
	}
	var fds []int
	for _, n := range v.nodes {
		if open[n.at.id] || n.at.gone.Load() {
			fds = append(fds, int(n.at.fd))
		}
	}
	return fds, nil
}
