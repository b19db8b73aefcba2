package policy

import (
	"strings"
	"syscall"
)

// kernel says what a kernel fault does.
func (e *explainer) kernel(f *KernelFault) {
	errno := syscall.Errno(f.Error)
	e.say("does", "fails with "+ErrnoName(errno)+" ("+errno.Error()+")")
	e.say("on", f.Hook.words())
	e.say("where", Printable(f.Where))
	var chain []string
	for _, frame := range f.Within {
		s := frame.Function
		if frame.Predicate != "" {
			s += " where " + Printable(frame.Predicate)
		}
		chain = append(chain, s)
	}
	e.say("within", strings.Join(chain, ", in it "))
	e.say("by", f.Caller.words())
	e.say("in", "the container's cgroup and those below it")
	e.say("backend", f.Backend)
	if f.Stack {
		e.say("records", "the kernel stack with each of them")
	}
}

func (h Hook) words() string {
	switch h.Kind {
	case "slab":
		return "slab allocations"
	case "page":
		return "page allocations"
	case "bio":
		return "block requests"
	}
	return "the " + hookWord(h.Kind) + " " + h.Name
}
