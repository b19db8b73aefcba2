package keeper

import (
	"maps"
	"slices"
)

// maxShownLabels is how many bytes of labels a keeper is told of its target. Annotations can be much longer, and it
// holds them as long as it lives and tells them with each of its grafts.
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
