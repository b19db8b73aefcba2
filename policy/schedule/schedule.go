// Package schedule reads the cron expressions of policies. It is pure: the
// caller brings the time.
package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a node, and a static binary in a bare image, may have no zone files

	cron "github.com/netresearch/go-cron"
)

// MaxLength is the length of an expression, bytes.
const MaxLength = 256

// Schedule says when something is due again and again.
type Schedule struct {
	expr   string
	zone   *time.Location
	ticker cron.Schedule
}

// Minute, hour, day of month, month, day of week, as in crontab(5): where both
// days are restricted either of them will do (DowOrDom).
var parser = cron.MustNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor | cron.DowOrDom)

// Parse reads a cron expression of five fields, or @hourly, @daily, @weekly,
// @monthly, @yearly or @every DURATION. zone is a name of the IANA time zone
// database; empty means UTC, Local the node's own. An expression that can never
// be due, such as the 30th of February, is an error.
func Parse(expr, zone string) (*Schedule, error) {
	loc := time.UTC
	if zone != "" {
		var err error
		if loc, err = time.LoadLocation(zone); err != nil {
			return nil, fmt.Errorf("time zone %q: %w; write a name of the IANA database, such as UTC or Europe/Berlin", zone, err)
		}
	}
	text := strings.ToLower(strings.TrimSpace(expr)) // the library takes the H of THU for a hash
	switch {
	case len(expr) > MaxLength:
		return nil, fmt.Errorf("the schedule is %d bytes long, the limit is %d", len(expr), MaxLength)
	case text == "":
		return nil, errors.New(`the schedule is empty; write for instance "*/10 * * * *"`)
	case strings.Contains(text, "tz="):
		return nil, fmt.Errorf("schedule %q: the time zone has a field of its own, timeZone", expr)
	}
	ticker, err := parser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w; write minute, hour, day of month, month and day of week, such as \"*/10 * * * *\"", expr, err)
	}
	if spec, ok := ticker.(*cron.SpecSchedule); ok {
		for _, f := range []struct {
			name string
			bits uint64
		}{{"minute", spec.Minute}, {"hour", spec.Hour}, {"day of month", spec.Dom}, {"month", spec.Month}, {"day of week", spec.Dow}} {
			if f.bits == 0 {
				return nil, fmt.Errorf("schedule %q: the %s is empty; write * for every one", expr, f.name)
			}
		}
		spec.Location = loc
	}
	s := &Schedule{expr: expr, zone: loc, ticker: ticker}
	// 2000 has every day that there is.
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, loc).Add(-time.Second)
	if s.Next(begin).IsZero() {
		return nil, fmt.Errorf("schedule %q is never due; is there such a day in that month?", expr)
	}
	return s, nil
}

// Next is the first time after t at which the schedule is due, in UTC. Where the
// clocks are put forward, what falls into the hour that is left out is due right
// after it; where they are put back, what falls into the hour that comes twice
// is due twice. Zero: not in the next five years.
func (s *Schedule) Next(t time.Time) time.Time {
	next := s.ticker.Next(t.In(s.zone))
	if next.IsZero() {
		return time.Time{}
	}
	return next.UTC()
}

// String gives the expression and its time zone.
func (s *Schedule) String() string { return s.expr + " " + s.zone.String() }
