package policies

import (
	"container/heap"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// Key names a container on this node: ids are unique in a containerd namespace only.
type Key struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
}

// String gives NAMESPACE/ID.
func (k Key) String() string { return k.Namespace + "/" + k.ID }

// slot is a container's number while it is known; it is used again afterwards.
type slot uint32

// containers are those that the agent has told of.
type containers struct {
	slots map[Key]slot
	list  []*container // nil: free
	// hashes are those of the identities, which choices go by; apart, because a choice looks at many.
	hashes []uint64
	free   []slot
	ages   ageQueue
}

type container struct {
	selection.Container
	// eligible: it runs, nothing protects it, and policies may ask for faults in it. Others match no policy.
	eligible bool
	// reported is what came of policies in it, by their names.
	reported map[string]TargetStatus
}

func (c *container) key() Key { return Key{c.Namespace, c.ID} }

func (c *containers) get(k Key) (*container, slot, bool) {
	n, ok := c.slots[k]
	if !ok {
		return nil, 0, false
	}
	return c.list[n], n, true
}

// put takes a container in, or what is new of it; false: nothing is.
func (c *containers) put(s selection.Container, l *limits.Limits) (n slot, changed bool) {
	k := Key{s.Namespace, s.ID}
	n, known := c.slots[k]
	if known {
		if sameContainer(&c.list[n].Container, &s) {
			return n, false
		}
		c.list[n].Container = s
	} else {
		if last := len(c.free) - 1; last >= 0 {
			n, c.free = c.free[last], c.free[:last]
		} else {
			n = slot(len(c.list))
			c.list, c.hashes = append(c.list, nil), append(c.hashes, 0)
		}
		c.list[n] = &container{Container: s}
		c.slots[k] = n
	}
	x := c.list[n]
	c.hashes[n] = selection.Hash(&x.Container)
	x.judge(l)
	return n, true
}

// judge decides whether any policy may be about the container.
func (c *container) judge(l *limits.Limits) {
	seen := limits.Of(&c.Container)
	c.eligible = !c.Started.IsZero() && !c.Protected && l.Protects(seen) == nil && l.AllowsContainer(limits.Policies, seen) == nil
}

func (c *containers) drop(n slot) {
	delete(c.slots, c.list[n].key())
	c.list[n] = nil
	c.free = append(c.free, n)
}

func sameContainer(a, b *selection.Container) bool {
	return a.Namespace == b.Namespace && a.ID == b.ID && a.Name == b.Name && a.Pod == b.Pod && a.PodNamespace == b.PodNamespace &&
		a.Image == b.Image && slices.Equal(a.Policies, b.Policies) && a.Protected == b.Protected && a.Started.Equal(b.Started) &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		maps.Equal(a.PodLabels, b.PodLabels) && maps.Equal(a.PodAnnotations, b.PodAnnotations)
}

// age is a moment at which a container's age changes whether it matches a policy.
type age struct {
	at     time.Time
	policy string
	key    Key
}

// ageQueue has the next moment first.
type ageQueue []age

func (q ageQueue) Len() int           { return len(q) }
func (q ageQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q ageQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push is container/heap's.
func (q *ageQueue) Push(x any) { *q = append(*q, x.(age)) }

// Pop is container/heap's.
func (q *ageQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

func (c *containers) wake(at time.Time, policy string, k Key) {
	if !at.IsZero() {
		heap.Push(&c.ages, age{at, policy, k})
	}
}
