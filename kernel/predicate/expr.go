package predicate

import "math/big"

// What the checker makes of the syntax: conditions over numbers.

// expr computes 64 bits: a number, extended by its sign, or a pointer.
type expr interface{ isExpr() }

type (
	// constant is within -2^63 and 2^64-1.
	constant struct{ v *big.Int }
	// load reads a parameter or what it leads to.
	load struct {
		param int
		hops  []hop // pointers to follow, each read from memory
		// memory is false for the parameter itself. Else the value lies in memory,
		// at the offset from the pointer that the hops lead to.
		memory bool
		offset uint32
		space  space
		size   uint32 // bytes to read
		shift  uint32 // bits of a bit field below its value
		num    number // how many bits count, and whether they have a sign
	}
	// arithmetic is one of & | ^ + - << >>, with 64 bits. trunc cuts the result
	// down to num.
	arithmetic struct {
		op    string
		x, y  expr
		num   number
		trunc bool
	}
)

func (*constant) isExpr()   {}
func (*load) isExpr()       {}
func (*arithmetic) isExpr() {}

// hop reads a pointer at an offset from the last one.
type hop struct {
	offset uint32
	space  space
}

// space says which memory an address is about.
type space int

const (
	spaceKernel space = iota
	spaceUser
	// spaceEither is told by the address: BTF does not say whether a char * or a
	// parameter is __user.
	spaceEither
)

// cond is a condition.
type cond interface{ isCond() }

type (
	truth   struct{ v bool }
	not     struct{ x cond }
	and     struct{ x, y cond }
	or      struct{ x, y cond }
	compare struct {
		op         string
		x, y       expr
		xnum, ynum number // of constants: ignored
	}
	// match compares memory with bytes.
	match struct {
		x     *load // gives the address: memory is false, or offset is added
		bytes []byte
		raw   bool // as many bytes as there are, no string: a full array
	}
)

func (*truth) isCond()   {}
func (*not) isCond()     {}
func (*and) isCond()     {}
func (*or) isCond()      {}
func (*compare) isCond() {}
func (*match) isCond()   {}
