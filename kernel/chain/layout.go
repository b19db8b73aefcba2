package chain

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf/btf"
)

// layout is where things are in the running kernel.
type layout struct {
	stack      int32 // task_struct.stack: the lowest address of the task's kernel stack
	stackBytes int32 // THREAD_SIZE
	sp         int16 // the stack pointer in a kprobe's context
}

// defaultStackBytes is THREAD_SIZE of amd64 and arm64 with 4 KiB pages and without KASAN.
const defaultStackBytes = 16 << 10

func readLayout(spec *btf.Spec) (layout, error) {
	l := layout{stackBytes: defaultStackBytes}
	var task *btf.Struct
	if err := spec.TypeByName("task_struct", &task); err != nil {
		return l, fmt.Errorf("type task_struct of the kernel: %w", err)
	}
	offset, ok := memberOffset(task.Members, "stack")
	if !ok {
		return l, errors.New("the kernel's task_struct has no member stack")
	}
	l.stack = int32(offset)
	// include/linux/sched.h: unsigned long stack[THREAD_SIZE/sizeof(long)]
	var union *btf.Union
	if spec.TypeByName("thread_union", &union) == nil && union.Size >= 4<<10 {
		l.stackBytes = int32(union.Size)
	}
	if contextType == "" {
		return l, fmt.Errorf("call chains are not known on %s", runtime.GOARCH)
	}
	var registers *btf.Struct
	if err := spec.TypeByName(contextType, &registers); err != nil {
		return l, fmt.Errorf("type %s of the kernel: %w", contextType, err)
	}
	if offset, ok = memberOffset(registers.Members, contextStackPointer); !ok {
		return l, fmt.Errorf("the kernel's %s has no member %s", contextType, contextStackPointer)
	}
	l.sp = int16(offset)
	return l, nil
}

// memberOffset looks into nameless members as well; the offset is in bytes.
func memberOffset(members []btf.Member, name string) (uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if offset, ok := memberOffset(inner, name); ok {
			return m.Offset.Bytes() + offset, true
		}
	}
	return 0, false
}
