package policy

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestOpNames(t *testing.T) {
	for _, o := range GroupAll.Ops() {
		b, err := json.Marshal(o)
		var again Op
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || again != o {
			t.Errorf("%v: %s becomes %v, %v", o, b, again, err)
		}
		r, err := ParseRule("r", "io latency=1s path=/d op="+o.String(), Defaults{})
		if err != nil || r.IO.Ops != setOf(o) {
			t.Errorf("op=%v is %v, %v", o, r.IO, err)
		}
	}
	var o Op
	if err := json.Unmarshal([]byte(`"banana"`), &o); err == nil {
		t.Error("an unknown operation was read")
	}
	if _, err := json.Marshal(opCount); err == nil {
		t.Error("an unknown operation was written")
	}
}

func TestGroups(t *testing.T) {
	if GroupData&GroupSync != 0 || GroupMeta&(GroupData|GroupSync) != 0 || GroupData|GroupSync|GroupMeta != GroupAll {
		t.Error("the groups do not divide the operations")
	}
	if !slices.Equal(GroupSync.Ops(), []Op{OpFlush, OpFsync, OpFdatasync, OpFsyncdir}) {
		t.Errorf("sync is %v", GroupSync)
	}
}

func TestOpSetJSON(t *testing.T) {
	for set, want := range map[OpSet]string{
		0: `""`, setOf(OpRead, OpWrite): `"read+write"`, GroupAll: `"all"`, GroupSync.With(OpRead): `"sync+read"`, GroupData | GroupMeta: `"data+meta"`,
	} {
		b, err := json.Marshal(set)
		var again OpSet
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || string(b) != want || again != set {
			t.Errorf("%v: %s, read back as %v, %v", set, b, again, err)
		}
	}
	var s OpSet
	if err := json.Unmarshal([]byte(`"read+banana"`), &s); err == nil {
		t.Error("an unknown operation was read")
	}
}
