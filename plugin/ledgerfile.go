package plugin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// What the agent keeps of its counts over a restart.

// countersFile holds the counts of what is over, in the state directory.
const countersFile = "counters.json"

// ledgerVersion is the form of the file.
const ledgerVersion = 1

// ledgerForm is the file.
type ledgerForm struct {
	Version    int                  `json:"version"`
	Faults     []faultRow           `json:"faults"`
	Containers []containerRow       `json:"containers"`
	Folded     map[string]time.Time `json:"folded"`
}

type faultRow struct {
	faultKey
	tally
}

type containerRow struct {
	containerRule
	N    uint64    `json:"n"`
	Last time.Time `json:"last"`
}

// loadLedger reads what is over; a file that cannot be understood is set aside, and warning says so.
func loadLedger(dir string, grafts Grafter, kernel func() []KernelFault, log *slog.Logger, now func() time.Time) (l *faultLedger, warning, err error) {
	l = &faultLedger{
		grafts: grafts, kernel: kernel, path: filepath.Join(dir, countersFile), log: log, now: now,
		over: map[faultKey]tally{}, told: map[faultKey]bool{}, containers: map[containerRule]*containerCount{}, live: map[string]*liveCounts{}, folded: map[string]time.Time{},
		replaced: map[string]int{},
	}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the node's fault counters: %w", err)
	}
	form, perr := parseLedger(b)
	if perr != nil {
		aside := l.path + ".corrupt"
		if err := os.Rename(l.path, aside); err != nil {
			return nil, nil, fmt.Errorf("the node's fault counters %s: %w; and they cannot be set aside: %w", l.path, perr, err)
		}
		return l, fmt.Errorf("the node's fault counters %s: %w; set aside as %s, counters start again", l.path, perr, aside), nil
	}
	for _, r := range form.Faults {
		l.over[r.faultKey], l.told[r.faultKey] = r.tally, true
	}
	for _, r := range form.Containers {
		l.containers[r.containerRule] = &containerCount{over: r.N, last: r.Last}
	}
	for id, t := range form.Folded {
		l.folded[id] = t
	}
	return l, nil, nil
}

func parseLedger(b []byte) (ledgerForm, error) {
	var form ledgerForm
	err := keeper.DecodeForm(b, ledgerVersion, &form)
	return form, err
}

// save writes the file; l.mu is held.
func (l *faultLedger) save() error {
	form := ledgerForm{Version: ledgerVersion, Folded: l.folded, Faults: []faultRow{}, Containers: []containerRow{}}
	for k, n := range l.over {
		form.Faults = append(form.Faults, faultRow{k, n})
	}
	for k, c := range l.containers {
		if c.over > 0 {
			form.Containers = append(form.Containers, containerRow{k, c.over, c.last})
		}
	}
	slices.SortFunc(form.Faults, func(a, b faultRow) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Errno, b.Errno))
	})
	b, err := json.Marshal(form)
	if err == nil {
		err = keeper.ReplaceFile(l.path, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("the node's fault counters: %w", err)
	}
	return nil
}
