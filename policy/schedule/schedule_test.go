package schedule

import (
	"strings"
	"testing"
	"time"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNext(t *testing.T) {
	for _, tt := range []struct{ expr, zone, from, want string }{
		{"*/10 * * * *", "", "2026-11-25T22:41:07Z", "2026-11-25T22:50:00Z"},
		{"*/10 * * * *", "", "2026-11-25T22:50:00Z", "2026-11-25T23:00:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T00:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-12-01T00:00:00Z", "2026-12-01T01:30:00Z"},
		{"0 9 * * THU", "UTC", "2026-11-25T00:00:00Z", "2026-11-26T09:00:00Z"},
		{"0 9 * * 7", "UTC", "2026-11-25T00:00:00Z", "2026-11-29T09:00:00Z"},
		{"0 0 13 * fri", "UTC", "2026-11-25T00:00:00Z", "2026-11-27T00:00:00Z"}, // either, as crontab(5) has it
		{"0 0 29 2 *", "UTC", "2026-11-25T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"@hourly", "UTC", "2026-11-25T22:41:07Z", "2026-11-25T23:00:00Z"},
		{"@Daily", "America/New_York", "2026-11-25T22:41:07Z", "2026-11-26T05:00:00Z"},
		{"@every 90s", "UTC", "2026-11-25T22:41:07Z", "2026-11-25T22:42:37Z"},
		{"30 2 29 3 *", "Europe/Berlin", "2026-03-28T00:00:00Z", "2026-03-29T01:30:00Z"}, // 02:30 is not there that night
	} {
		s, err := Parse(tt.expr, tt.zone)
		if err != nil {
			t.Errorf("%q: %v", tt.expr, err)
			continue
		}
		if got := s.Next(at(t, tt.from)).Format(time.RFC3339); got != tt.want {
			t.Errorf("%q in %q after %s is due at %s, want %s", tt.expr, tt.zone, tt.from, got, tt.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct{ expr, zone, want string }{
		{"", "", "empty"},
		{" ", "", "empty"},
		{"* * * *", "", "minute, hour"},
		{"* * * * * *", "", "minute, hour"},
		{"60 * * * *", "", "60"},
		{"*/0 * * * *", "", "step"},
		{", * * * *", "", "the minute is empty"},
		{"0 0 30 2 *", "", "never due"},
		{"@reboot", "", "@reboot"},
		{"@every 1ms", "", "at least"},
		{"TZ=UTC 0 0 * * *", "", "timeZone"},
		{"0 0 * * *", "Mars/Olympus", "IANA"},
		{"0 0 * * *", "../../etc/passwd", "IANA"},
		{strings.Repeat("1", 300), "", "limit"},
	} {
		if _, err := Parse(tt.expr, tt.zone); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q in %q: %v, want an error that says %q", tt.expr, tt.zone, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, expr := range []string{"*/10 * * * *", "0 0 1-7 * mon", "5,35 8-18/2 * jan-mar *", "@every 1h", "22-2 * * * *", "0 0 31 2,4,6 *"} {
		f.Add(expr, int64(1795646467))
	}
	f.Fuzz(func(t *testing.T, expr string, from int64) {
		s, err := Parse(expr, "Europe/Berlin")
		if err != nil {
			return
		}
		begin := time.Unix(from%(1<<32), 0)
		next := s.Next(begin)
		if !next.IsZero() && !next.After(begin) {
			t.Errorf("%q after %v is due at %v", expr, begin, next)
		}
	})
}
