package hooks

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxConfig is the largest config.json that is read, in bytes; one with a long seccomp profile has some 100 kB.
const maxConfig = 16 << 20

// Annotations gives the annotations of a container: those of its bundle's
// config.json, and over them those of the state. A bundle that was removed after
// the container was created is no error; one that cannot be read is, because it
// may hold a refusal (enable.faultgraft.io=false).
func Annotations(s *specs.State) (map[string]string, error) {
	merged, err := bundleAnnotations(filepath.Join(s.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	for k, v := range s.Annotations {
		// A refusal in either place counts.
		if was, ok := merged[k]; ok && was != "true" && isEnable(k) {
			continue
		}
		merged[k] = v
	}
	return merged, nil
}

func isEnable(key string) bool {
	head, _, _ := strings.Cut(key, "/")
	return head == "enable."+policy.Domain
}

func bundleAnnotations(path string) (map[string]string, error) {
	// O_NONBLOCK: a FIFO in its place must not hang the runtime.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the container's annotations: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the container's annotations: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read the container's annotations: %s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read the container's annotations: %w", err)
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("read the container's annotations: %s is larger than %d bytes", path, maxConfig)
	}
	// Nothing else of it is looked at, so that a later version of the rest does no harm.
	var config struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := decode(b, &config); err != nil {
		return nil, fmt.Errorf("read the container's annotations: %s: %w", path, err)
	}
	out := make(map[string]string, len(config.Annotations))
	maps.Copy(out, config.Annotations)
	return out, nil
}

// containerName is what RULE.faultgraft.io/container.NAME refers to; empty: the
// container has none. CRI-O and containerd note it so.
func containerName(a map[string]string) string {
	return cmp.Or(a["io.kubernetes.container.name"], a["io.kubernetes.cri.container-name"])
}

// isSandbox says that a container is the pause container of a pod, which
// carries the pod's annotations and runs none of its programs.
func isSandbox(a map[string]string) bool {
	return a["io.kubernetes.cri-o.ContainerType"] == "sandbox" || a["io.kubernetes.cri.container-type"] == "sandbox"
}
