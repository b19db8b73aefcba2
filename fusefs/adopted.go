package fusefs

// Adopted lists the handles of adopted descriptions (see Arm) that are open still on the layer.
func (l *Layer) Adopted() []uint64 {
	l.handles.mu.RLock()
	defer l.handles.mu.RUnlock()
	out := []uint64{}
	for id, h := range l.handles.m {
		if h.adopted {
			out = append(out, id)
		}
	}
	return out
}
