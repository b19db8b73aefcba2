package tracer

import "testing"

// A program that is linked statically, as those of Go are, may have no other room for the code than the vdso.
func TestCodeFitsTheVDSO(t *testing.T) {
	const zeros = 1015 // at the end of that of Debian 13's kernel, 6.12.117
	code := uint64(len(parasiteCode))
	if _, ok := new(process).takeSlack(span{pageSize - zeros + slackMargin, pageSize}, code, nil); !ok {
		t.Errorf("%d bytes of code are too many", code)
	}
}
