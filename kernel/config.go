package kernel

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxConfig is more than any kernel's configuration (about 300 kB) unpacked.
const maxConfig = 8 << 20

// config holds the settings of a kernel that are not off, by their full name:
// "y", "m", a number or a string without its quotes.
type config map[string]string

// parseConfig reads the format of /proc/config.gz (unpacked), see
// Documentation/kbuild/kconfig.rst. What is no setting is an error.
func parseConfig(text []byte) (config, error) {
	c := config{}
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") { // "# CONFIG_X is not set" is the same as no line
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !strings.HasPrefix(name, "CONFIG_") {
			return nil, fmt.Errorf("line %d is not a setting: %.60q", n, line)
		}
		if value == "n" {
			continue
		}
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		c[name] = value
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(c) == 0 {
		return nil, errors.New("no settings in it")
	}
	return c, nil
}

// missing returns those of the names that are not built in.
func (c config) missing(names []string) []string {
	var m []string
	for _, n := range names {
		if c[n] != "y" {
			m = append(m, n)
		}
	}
	return m
}

// readConfig returns the configuration of the kernel of that release (uname -r).
func readConfig(release string) (config, error) {
	var errs []error
	for _, path := range []string{"/proc/config.gz", "/boot/config-" + release, "/lib/modules/" + release + "/config"} {
		c, err := readConfigFile(path)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, firstOdd(errs)
}

// firstOdd returns the first error that is more than a missing file.
func firstOdd(errs []error) error {
	for _, err := range errs {
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return errors.New("no /proc/config.gz, and none in /boot or /lib/modules")
}

func readConfigFile(path string) (config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = fmt.Errorf("larger than %d bytes", maxConfig)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
