package keeper

import (
	"maps"
	"slices"
)

// maxShownLabels is how many bytes of labels a keeper is told of its target. It gets them as an
// argument, of which the kernel takes 128 KiB (MAX_ARG_STRLEN, include/uapi/linux/binfmts.h), and annotations
// can be longer than that: a container must not get out of its faults by a long one. In JSON a byte can become six.
const maxShownLabels = 16 << 10

// shownLabels are those of a target that are shown with its grafts, in the order of their keys as long as there is room.
func shownLabels(all map[string]string) map[string]string {
	room := maxShownLabels
	shown := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if n := len(k) + len(all[k]) + len(`"":"",`); n <= room {
			shown[k] = all[k]
			room -= n
		}
	}
	return shown
}
