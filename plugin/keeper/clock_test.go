package keeper

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// The start of rules is the same moment for who gets it, whatever the time of day is by then.
func TestStartOfRulesTravels(t *testing.T) {
	start := time.Now().Add(-time.Minute)
	b, err := json.Marshal(rulesCall{Layer: "g-1", Start: start, Coming: true})
	if err != nil {
		t.Fatal(err)
	}
	var c rulesCall
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	// Two readings of two clocks lie between.
	if d := c.Start.Sub(start).Abs(); d > 30*time.Second || c.Layer != "g-1" || !c.Coming {
		t.Errorf("%s became %+v, %v off", b, c, d)
	}
	if !strings.Contains(c.Start.String(), " m=") { // how String tells that there is a monotonic reading
		t.Error("its start goes by the time of day")
	}
}
