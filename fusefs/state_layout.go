package fusefs

import (
	"fmt"
	"hash/fnv"
	"io"
	"reflect"
	"sync"
)

// stateLayout tells where everything is in the memory of a State, in one number: names, types, sizes and places of the
// fields of all that lies there. A State says which one it has, so that no process reads memory of which another
// build has moved a field. What a field means is not in it: who changes that raises stateVersion.
var stateLayout = sync.OnceValue(func() uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintln(h, stateSizes, chunkBytes, ledgerSlotBytes, requestRoom, slotSizes) // a hash takes everything
	for _, v := range []any{
		stateHead{}, tableHead{}, nodeSlot{}, textSlot{}, handleSlot{}, ownerSlot{}, forgottenSlot{}, ruleSlot{}, faultSlot{}, ledgerHead{}, ledgerSlot{},
	} {
		describe(h, reflect.TypeOf(v))
	}
	return h.Sum64()
})

// describe writes a type with all that it consists of.
func describe(w io.Writer, t reflect.Type) {
	_, _ = fmt.Fprintf(w, "%s %s %d\n", t.Name(), t.Kind(), t.Size())
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			_, _ = fmt.Fprintf(w, "%s +%d ", f.Name, f.Offset)
			describe(w, f.Type)
		}
	case reflect.Array:
		_, _ = fmt.Fprintf(w, "[%d] ", t.Len())
		describe(w, t.Elem())
	}
}
