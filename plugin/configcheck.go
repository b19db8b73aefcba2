package plugin

import (
	"errors"
	"os"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// Where a configuration may lie: the agent's own, and what containerd hands to its plugin.
var configFiles = []string{DefaultConfigFile, "/etc/nri/conf.d/10-faultgraft.conf"}

// checkConfig reads the configuration files that are there as the agent does.
func checkConfig(files []string) graft.Check {
	c := graft.Check{Name: "configuration", OK: true}
	var good, bad []string
	for _, file := range files {
		_, err := LoadConfig(file, false)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			bad = append(bad, err.Error())
		default:
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
