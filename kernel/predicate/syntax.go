package predicate

import (
	"strconv"
	"strings"
)

// node is a part of the syntax tree.
type node interface {
	pos() place
	write(*strings.Builder)
}

type (
	// nameNode is a parameter or a constant.
	nameNode struct {
		at   place
		name string
	}
	numberNode struct {
		at    place
		value uint64
		text  string
	}
	stringNode struct {
		at    place
		value string
	}
	// unaryNode is one of ! ~ - * before x.
	unaryNode struct {
		at place
		op string
		x  node
	}
	binaryNode struct {
		at   place // of the operator
		op   string
		x, y node
	}
	memberNode struct {
		at   place // of the name
		x    node
		op   string // "->" or "."
		name string
	}
	indexNode struct {
		at    place // of the index
		x     node
		index uint64
	}
	callNode struct {
		at       place
		function string
		args     []node
	}
	// groupNode is a pair of parentheses. The tree keeps them to tell
	// a & (b == c) from a & b == c.
	groupNode struct {
		at place
		x  node
	}
)

func (n *nameNode) pos() place   { return n.at }
func (n *numberNode) pos() place { return n.at }
func (n *stringNode) pos() place { return n.at }
func (n *unaryNode) pos() place  { return n.at }
func (n *binaryNode) pos() place { return n.at }
func (n *memberNode) pos() place { return n.at }
func (n *indexNode) pos() place  { return n.at }
func (n *callNode) pos() place   { return n.at }
func (n *groupNode) pos() place  { return n.at }

func (n *nameNode) write(b *strings.Builder)   { b.WriteString(n.name) }
func (n *numberNode) write(b *strings.Builder) { b.WriteString(n.text) }
func (n *stringNode) write(b *strings.Builder) { b.WriteString(quote(n.value)) }

func (n *unaryNode) write(b *strings.Builder) {
	b.WriteString(n.op)
	n.x.write(b)
}

func (n *binaryNode) write(b *strings.Builder) {
	n.x.write(b)
	b.WriteString(" " + n.op + " ")
	n.y.write(b)
}

func (n *memberNode) write(b *strings.Builder) {
	n.x.write(b)
	b.WriteString(n.op + n.name)
}

func (n *indexNode) write(b *strings.Builder) {
	n.x.write(b)
	b.WriteString("[" + strconv.FormatUint(n.index, 10) + "]")
}

func (n *callNode) write(b *strings.Builder) {
	b.WriteString(n.function + "(")
	for i, a := range n.args {
		if i > 0 {
			b.WriteString(", ")
		}
		a.write(b)
	}
	b.WriteString(")")
}

func (n *groupNode) write(b *strings.Builder) {
	b.WriteString("(")
	n.x.write(b)
	b.WriteString(")")
}

// ungroup takes the parentheses away.
func ungroup(n node) node {
	for {
		g, ok := n.(*groupNode)
		if !ok {
			return n
		}
		n = g.x
	}
}

// source writes a node as it would be written in a predicate, for messages.
func source(n node) string {
	var b strings.Builder
	n.write(&b)
	if s := b.String(); len(s) <= 60 {
		return s
	}
	return b.String()[:57] + "…"
}
