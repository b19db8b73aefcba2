package plugin

import (
	"errors"
	"os"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// Where a configuration may lie: the agent's own, and what containerd hands to its plugin.
var configFiles = []string{"/etc/faultgraft/config.yaml", "/etc/nri/conf.d/10-faultgraft.conf"}

// checkConfig reads the configuration files that are there as the agent does.
func checkConfig(files []string) graft.Check {
	c := graft.Check{Name: "configuration", OK: true}
	var good, bad []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = ParseConfig(string(text))
		}
		if err != nil {
			bad = append(bad, file+": "+err.Error())
		} else {
			good = append(good, file)
		}
	}
	switch {
	case len(bad) > 0:
		c.OK, c.Detail, c.Fix = false, strings.Join(bad, "; "), "repair the file: the agent does not start with it"
	case len(good) == 0:
		c.Detail = "no file: the defaults hold"
	default:
		c.Detail = strings.Join(good, ", ")
	}
	return c
}
