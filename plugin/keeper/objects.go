package keeper

import (
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// objectsLeft takes a page of what the dead server of a layer had open of objects below; none if there is nobody who keeps it.
func (k *keeper) objectsLeft(id string, from int) ([]int, error) {
	e, there, err := k.left()
	l := e.layer(id)
	if err != nil || !there || l == nil {
		return nil, err
	}
	t := newTaker(e)
	defer t.close()
	st, err := t.state(*l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }() // of this process
	numbers, err := st.Objects()
	if err != nil || from < 0 || from >= len(numbers) {
		return nil, err
	}
	fds, err := t.take(st.Owner(), numbers[from:min(len(numbers), from+batch)]...)
	if err != nil {
		wire.CloseAll(fds)
		return nil, err
	}
	return fds, nil
}
