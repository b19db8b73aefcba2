package policy

import "testing"

func TestSyntaxErrorDetail(t *testing.T) {
	res := ParseLabels(Subject{Labels: map[string]string{"wal.faultgraft.io": "io\tpath=/ä error=EIOO"}}, Defaults{})
	if len(res.Problems) != 1 {
		t.Fatalf("problems: %v", res.Problems)
	}
	want := `label wal.faultgraft.io: column 18: unknown errno "EIOO"; did you mean EIO?
  io path=/ä error=EIOO
                   ^`
	if got := res.Problems[0].Detail(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	hostile := SyntaxError{Source: "a\x1b[2J", Column: 3, Text: "x\x1b[2J\x00\xff\u202e"}
	for _, r := range hostile.Detail() {
		if r != '\n' && !printableRune(r) {
			t.Errorf("the detail has the character %q", r)
		}
	}
}
