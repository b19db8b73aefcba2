package kernel

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// scope says whose cgroup decides.
type scope int

const (
	// scopeTask is the current thread's.
	scopeTask scope = iota
	// scopeBio is the one that the block request is charged to: journals and
	// write-back are submitted by threads of the kernel, for whoever wrote. R7 is
	// the address of the struct bio.
	scopeBio
)

// maxLevels is how many different depths the targets of one program may have.
const maxLevels = 8

// levels is the value of the map that says at which depths of the hierarchy
// there are targets; 0 ends the list, it is the root's.
type levels [maxLevels]uint32

// find gives code that looks for the cgroup, or the nearest of its ancestors,
// that is a target. Then R0 is its value and the stack's slot its id; otherwise
// it jumps to miss. It keeps R6 and R9, and uses 8 bytes from slot on, for
// scopeBio 24 bytes below it too.
func (s scope) find(l *layout, targets, levelMap int, slot int16, miss, prefix string) asm.Instructions {
	if s == scopeBio {
		return s.findBio(l, targets, levelMap, slot, miss, prefix)
	}
	found := prefix + "_found"
	ins := asm.Instructions{asm.LoadMapValue(asm.R7, levelMap, 0)}
	for i := range maxLevels {
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.R7, int16(4*i), asm.Word),
			asm.JEq.Imm(asm.R1, 0, miss),
			asm.FnGetCurrentAncestorCgroupId.Call(), // 0 if it is not that deep
			asm.StoreMem(asm.RFP, slot, asm.R0, asm.DWord),
		)
		ins = append(ins, lookup(targets, slot)...)
		ins = append(ins, asm.JNE.Imm(asm.R0, 0, found))
	}
	return append(ins, asm.Ja.Label(miss), asm.Mov.Imm(asm.R1, 0).WithSymbol(found))
}

// findBio reads bio->bi_blkg->blkcg->css.cgroup and its ancestors, see
// block/blk-cgroup.h. cgroup->ancestors is there since Linux 6.1; before, ids
// were in cgroup->ancestor_ids.
func (s scope) findBio(l *layout, targets, levelMap int, slot int16, miss, prefix string) asm.Instructions {
	cgroup, depth := slot-8, slot-16
	ins := follow(asm.R7, l.offset("bio", "bi_blkg"), slot, miss)
	ins = append(ins, follow(asm.R7, l.offset("blkcg_gq", "blkcg"), slot, miss)...)
	ins = append(ins, follow(asm.R7, l.offset("blkcg", "css", "cgroup"), slot, miss)...)
	ins = append(ins,
		asm.JEq.Imm(asm.R7, 0, miss),
		asm.StoreMem(asm.RFP, cgroup, asm.R7, asm.DWord),
	)
	ins = append(ins, readKernel(asm.R7, l.offset("cgroup", "level"), 4, depth, miss)...)
	ins = append(ins,
		asm.LoadMem(asm.R8, asm.RFP, depth, asm.DWord),
		asm.StoreMem(asm.RFP, depth, asm.R8, asm.DWord),
	)
	found := prefix + "_found"
	byID := !l.has("cgroup", "ancestors")
	ancestors := "ancestors"
	if byID {
		ancestors = "ancestor_ids"
	}
	at := l.offset("cgroup", ancestors)
	for i := range maxLevels {
		next := fmt.Sprintf("%s_next%d", prefix, i)
		ins = append(ins,
			asm.LoadMapValue(asm.R1, levelMap, 0),
			asm.LoadMem(asm.R1, asm.R1, int16(4*i), asm.Word),
			asm.JEq.Imm(asm.R1, 0, miss),
			asm.LoadMem(asm.R8, asm.RFP, depth, asm.DWord),
			asm.JGT.Reg(asm.R1, asm.R8, next), // not that deep
			asm.LSh.Imm(asm.R1, 3),
			asm.LoadMem(asm.R7, asm.RFP, cgroup, asm.DWord),
			asm.Add.Reg(asm.R7, asm.R1),
		)
		ins = append(ins, follow(asm.R7, at, slot, miss)...)
		if !byID {
			ins = append(ins, follow(asm.R7, l.offset("cgroup", "kn"), slot, miss)...)
			ins = append(ins, follow(asm.R7, l.offset("kernfs_node", "id"), slot, miss)...)
		}
		ins = append(ins, lookup(targets, slot)...) // follow has left the id in the slot
		ins = append(ins,
			asm.JNE.Imm(asm.R0, 0, found),
			asm.Mov.Imm(asm.R1, 0).WithSymbol(next),
		)
	}
	return append(ins, asm.Ja.Label(miss), asm.Mov.Imm(asm.R1, 0).WithSymbol(found))
}

// lookup looks the key in a slot of the stack up in a map; R0 is the value's
// address, or 0.
func lookup(mapFD int, slot int16) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, mapFD),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(slot)),
		asm.FnMapLookupElem.Call(),
	}
}

// readKernel reads size bytes at an address plus offset into a slot of 8 bytes,
// the rest of which is 0. A fault jumps to miss.
func readKernel(address asm.Register, offset int16, size int32, slot int16, miss string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, slot, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, int32(slot)),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Reg(asm.R3, address),
		asm.Add.Imm(asm.R3, int32(offset)),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, miss),
	}
}

// follow replaces an address by the 8 bytes at it plus offset.
func follow(address asm.Register, offset, slot int16, miss string) asm.Instructions {
	return append(readKernel(address, offset, 8, slot, miss),
		asm.LoadMem(address, asm.RFP, slot, asm.DWord))
}
