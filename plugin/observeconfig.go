package plugin

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// MetricsConfig is about the read-only TCP listener.
type MetricsConfig struct {
	// Listen is where metrics and health are served, as 127.0.0.1:9464; empty: nowhere but on the control socket.
	Listen string `json:"listen,omitempty"`
	// Remote allows an address that other machines can reach.
	Remote bool `json:"remote,omitempty"`
}

// AuditConfig is about the audit log.
type AuditConfig struct {
	// File is the log; empty: audit.jsonl in the state directory, which a reboot empties.
	File string `json:"file,omitempty"`
	// MaxSize is how large the file may get before it is moved aside; default 16MiB.
	MaxSize Size `json:"maxSize,omitempty"`
	// MaxFiles is how many files are kept, the one that is written included; default 5.
	MaxFiles int `json:"maxFiles,omitempty"`
}

func (c AuditConfig) audit() keeper.Audit {
	return keeper.Audit{File: c.File, MaxSize: int64(c.MaxSize), MaxFiles: c.MaxFiles}
}

// observe fills what the options left out of what tells of the agent's work.
func (o Options) observe(c Config) Options {
	if o.MetricsListen == "" {
		o.MetricsListen, o.MetricsRemote = c.Metrics.Listen, c.Metrics.Remote
	}
	if o.Audit == (keeper.Audit{}) {
		o.Audit = c.Audit.audit()
	}
	if o.LogFormat == "" {
		o.LogFormat = string(c.Log.Format)
	}
	return o
}

// Size is a number of bytes that YAML writes with its unit, as 16MiB.
type Size int64

var sizeUnits = []struct {
	unit  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// UnmarshalText reads a number with its unit, from 4KiB to 1024GiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(string(text), u.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n <= 0 || n > (1024<<30)/u.bytes || n*u.bytes < 4<<10 {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("size %q: write a whole number of KiB, MiB or GiB, as in 16MiB, from 4KiB on", text)
}

// MarshalText writes what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) {
	if s == 0 {
		return nil, nil
	}
	for i := len(sizeUnits) - 1; i >= 0; i-- {
		if u := sizeUnits[i]; int64(s)%u.bytes == 0 {
			return []byte(fmt.Sprint(int64(s)/u.bytes, u.unit)), nil
		}
	}
	return nil, fmt.Errorf("size %d: not a whole number of KiB", int64(s))
}

// LogFormat is text or json; empty is text.
type LogFormat string

// UnmarshalText refuses what is no format.
func (f *LogFormat) UnmarshalText(text []byte) error {
	*f = LogFormat(text)
	return checkLogFormat(string(text))
}

func checkLogFormat(f string) error {
	switch f {
	case "", "text", "json":
		return nil
	}
	return fmt.Errorf("log format %q: use text or json", f)
}

func checkAudit(a keeper.Audit) error {
	switch {
	case a.File != "" && !filepath.IsAbs(a.File):
		return fmt.Errorf("audit log %q: not an absolute path", a.File)
	case a.MaxFiles < 0:
		return fmt.Errorf("audit log: %d files: keep at least one", a.MaxFiles)
	case a.MaxSize < 0:
		return fmt.Errorf("audit log: a size of %d bytes", a.MaxSize)
	}
	return nil
}
