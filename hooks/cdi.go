package hooks

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// CDIKind is the vendor and the class of faultgraft's CDI devices.
const CDIKind = "faultgraft.io/fault"

// CDIDir is where container engines look for CDI specifications that a person installs.
const CDIDir = "/etc/cdi"

// cdiVersion is the oldest version of the CDI specification that has all that is used here:
// https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
const cdiVersion = "0.6.0"

// cdiName is what the name of a device may be: its rules' names begin with it.
var cdiName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// cdiSpec is the part of a CDI specification that a fault needs.
type cdiSpec struct {
	Version string      `json:"cdiVersion"`
	Kind    string      `json:"kind"`
	Devices []cdiDevice `json:"devices"`
}

type cdiDevice struct {
	Name           string `json:"name"`
	ContainerEdits struct {
		Hooks []cdiHook `json:"hooks"`
	} `json:"containerEdits"`
}

type cdiHook struct {
	HookName string   `json:"hookName"`
	Path     string   `json:"path"`
	Args     []string `json:"args"`
}

// CDISpec is the CDI specification of one device: a container that is given it
// gets a poststart hook, the program at path with args. Runtimes in whose hands
// the hooks of createRuntime and createContainer are call them before pivot_root;
// see CheckPhase.
func CDISpec(device, path string, args []string) ([]byte, error) {
	if !cdiName.MatchString(device) {
		return nil, fmt.Errorf("device name %q: use up to 63 lower-case letters, digits and inner hyphens", device)
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("the hook's program %q: not an absolute path", path)
	}
	d := cdiDevice{Name: device}
	d.ContainerEdits.Hooks = []cdiHook{{HookName: Poststart, Path: path, Args: args}}
	b, err := json.MarshalIndent(cdiSpec{cdiVersion, CDIKind, []cdiDevice{d}}, "", "  ")
	return append(b, '\n'), err
}

// InstallCDI puts a device's specification into a folder, in a file of its own
// that is replaced whole, and returns the file's name.
func InstallCDI(dir, device string, spec []byte) (string, error) {
	name := filepath.Join(dir, "faultgraft.io-fault-"+device+".json")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("install the CDI device %s: %w", device, err)
	}
	// Engines read files that end in .json or .yaml only.
	temporary := name + ".new"
	if err := os.WriteFile(temporary, spec, 0o644); err != nil {
		return "", fmt.Errorf("install the CDI device %s: %w", device, err)
	}
	if err := os.Rename(temporary, name); err != nil {
		return "", fmt.Errorf("install the CDI device %s: %w", device, err)
	}
	return name, nil
}
