//go:build amd64 || arm64

package tracer

import "encoding/binary"

// paraWords are the words at the end of the code that the tracer fills in.
type paraWords []byte

func (w paraWords) set(i int, v uint64) { binary.LittleEndian.PutUint64(w[8*i:], v) }

// newParaImage returns a copy of the code, and the words in it that do not depend on
// the machine's registers filled in.
func newParaImage(c *paraConfig) (code []byte, words paraWords) {
	code = append([]byte(nil), parasiteCode...)
	words = code[len(code)-8*wordCount:]
	words.set(wordAddr, c.scratch.start)
	words.set(wordSize, c.scratch.end-c.scratch.start)
	words.set(wordMask, c.mask)
	if c.limit != nil {
		words.set(wordLimited, 1)
		words.set(wordRaisedCur, c.raised.Cur)
		words.set(wordRaisedMax, c.raised.Max)
		words.set(wordLimitCur, c.limit.Cur)
		words.set(wordLimitMax, c.limit.Max)
	}
	return code, words
}

// paraLabel returns the offset of a label from the start of the code.
func paraLabel(word int) uint64 {
	return binary.LittleEndian.Uint64(parasiteCode[len(parasiteCode)-8*wordCount+8*word:])
}

// paraLast is where the code has done all but to go on, paraFini where it begins to end,
// from its start.
func paraLast() uint64 { return paraLabel(wordLast) }
func paraFini() uint64 { return paraLabel(wordFini) }
