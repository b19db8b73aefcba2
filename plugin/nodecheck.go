package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// NodeCheckOptions say where CheckNode looks. Empty fields are the agent's defaults.
type NodeCheckOptions struct {
	StateDir          string
	ContainerdAddress string
	NRISocket         string
	// Version is this build's, to be compared with the agent's.
	Version string
}

// checkTimeout bounds each question to another process.
const checkTimeout = 5 * time.Second

// CheckNode says what faultgraft finds on this node beside the kernel: containerd,
// NRI, the agent, its state directory. It changes nothing, and what one check cannot tell
// stops no other. Nothing of it is required: a graft by hand needs none of these.
func CheckNode(ctx context.Context, o NodeCheckOptions) []graft.Check {
	d := Options{StateDir: o.StateDir, ContainerdAddress: o.ContainerdAddress, NRISocket: o.NRISocket}.withDefaults()
	h, err := askAgent(ctx, d.StateDir)
	all := []graft.Check{checkCgroups(), checkTypes(), checkBPFFS(), checkContainerd(ctx, d.ContainerdAddress), checkNRI(d.NRISocket), checkAgent(h, err, o.Version)}
	if err == nil {
		all = append(all, checkSources(h)...)
	}
	return append(all, checkConfig(configFiles), checkStateDir(d.StateDir), checkLeftovers(ctx, d.StateDir), checkStopped(d.StateDir), checkWrapper())
}

func checkCgroups() graft.Check {
	c := graft.Check{Name: "cgroup v2", OK: true, Detail: "the only hierarchy"}
	if _, err := kernel.CgroupAt("/"); err != nil {
		c.OK, c.Detail = false, "no kernel faults: "+err.Error()
		c.Fix = "boot with systemd.unified_cgroup_hierarchy=1"
		return c
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		c.Detail = "beside v1 (hybrid): kernel faults work on containers whose runtime uses v2"
	}
	return c
}

const kernelBTF = "/sys/kernel/btf/vmlinux"

func checkTypes() graft.Check {
	c := graft.Check{Name: "BTF", OK: true, Detail: kernelBTF}
	if _, err := os.Stat(kernelBTF); err != nil {
		c.OK, c.Detail, c.Fix = false, "no kernel faults: the kernel has no type information: "+err.Error(), "boot a kernel with CONFIG_DEBUG_INFO_BTF"
	}
	return c
}

func checkBPFFS() graft.Check {
	const dir = "/sys/fs/bpf"
	c := graft.Check{Name: "bpffs", OK: true, Detail: dir + ": kernel faults can outlive the agent (--outlive)"}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || uint32(st.Type) != unix.BPF_FS_MAGIC {
		c.OK, c.Detail, c.Fix = false, "not mounted on "+dir+": no --outlive", "mount -t bpf bpf "+dir
	}
	return c
}

// checkContainerd asks containerd for its version.
func checkContainerd(ctx context.Context, address string) graft.Check {
	c := graft.Check{Name: "containerd"}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	version, err := containerdVersion(ctx, address)
	if err != nil {
		c.Detail = fmt.Sprintf("%s: %v", address, err)
		c.Fix = "start containerd, or name its socket by --containerd-address; --pid needs none"
		return c
	}
	c.OK, c.Detail = true, version+" at "+address
	if strings.HasPrefix(strings.TrimPrefix(version, "v"), "1.") {
		c.Detail += ": faultgraft is tested with 2 and newer"
	}
	return c
}

func containerdVersion(ctx context.Context, address string) (version string, err error) {
	r, err := dialContainerd(address)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	v, err := r.client.Version(ctx)
	return v.Version, err
}

// checkNRI looks whether somebody listens. It says nothing there: NRI would take it for a plugin.
func checkNRI(socket string) graft.Check {
	c := graft.Check{Name: "NRI"}
	conn, err := net.DialTimeout("unix", socket, checkTimeout)
	if err != nil {
		c.Detail = fmt.Sprintf("containers of Kubernetes are grafted around their start, not before it: %v", err)
		c.Fix = "turn NRI on in containerd's configuration (contrib/containerd/10-faultgraft.toml) and restart containerd"
		return c
	}
	c.OK, c.Detail = true, socket
	if err := conn.Close(); err != nil {
		c.Detail += ": " + err.Error()
	}
	return c
}

func askAgent(ctx context.Context, stateDir string) (Health, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return NewClient(stateDir).Health(ctx)
}

func checkAgent(h Health, err error, version string) graft.Check {
	c := graft.Check{Name: "agent"}
	switch {
	case errors.Is(err, ErrNoAgent):
		c.Detail = "none runs: labels are not looked at, and kernel faults need --outlive"
		c.Fix = "systemctl start faultgraft, or let containerd launch it (docs/plugin.md)"
	case err != nil:
		c.Detail = "it does not answer: " + err.Error()
		c.Fix = "look at its log (journalctl -u faultgraft, or daemon.log in the state directory) and restart it"
	case version != "" && h.Version != version:
		c.Detail = fmt.Sprintf("process %d is version %q, this command %q", h.PID, h.Version, version)
		c.Fix = "restart the agent: grafts stay, kernel faults of labels are armed again for the rest of their time"
	case !h.OK:
		c.Detail = fmt.Sprintf("process %d says that it does not work", h.PID)
		c.Fix = "look at its log and restart it"
	default:
		c.OK, c.Detail = true, fmt.Sprintf("process %d, version %s", h.PID, h.Version)
	}
	return c
}

// checkSources are what the agent says of its connections and time-outs.
func checkSources(h Health) []graft.Check {
	events := graft.Check{Name: "agent and containerd", OK: h.Containerd.Connected, Detail: "it follows containerd's events"}
	if !events.OK {
		events.Detail = "not connected: " + h.Containerd.Reason
		events.Fix = "start containerd, or give the agent its socket (containerdAddress); it tries again by itself"
	}
	nri := graft.Check{Name: "agent and NRI", OK: h.NRI.Connected, Detail: "it is registered as a plugin"}
	if !nri.OK {
		nri.Detail = "not registered: " + h.NRI.Reason
		nri.Fix = "turn NRI on in containerd (contrib/containerd/10-faultgraft.toml); the agent tries again by itself"
	}
	all := []graft.Check{events, nri}
	if h.RequestTimeout == 0 {
		return all
	}
	budget, limit := time.Duration(h.StartBudget), time.Duration(h.RequestTimeout)
	c := graft.Check{Name: "time-outs", OK: budget <= limit*3/4, Detail: fmt.Sprintf("a start waits at most %v for its faults, NRI cuts a plugin off after %v", budget, limit)}
	if !c.OK {
		c.Detail += fmt.Sprintf("; so it waits for %v only", limit*3/4)
		c.Fix = "make plugin_request_timeout in containerd's configuration longer, or nri.startBudget in faultgraft's shorter"
	}
	return append(all, c)
}

// enoughSpace is what the event log with its rotation, the agent's memory and the
// keepers' logs may come to.
const enoughSpace = 64 << 20

func checkStateDir(dir string) graft.Check {
	c := graft.Check{Name: "state directory"}
	var st unix.Statfs_t
	at := dir
	err := unix.Statfs(at, &st)
	if errors.Is(err, unix.ENOENT) { // the first graft makes it
		at = filepath.Dir(dir)
		err = unix.Statfs(at, &st)
	}
	if err != nil {
		c.Detail, c.Fix = fmt.Sprintf("%s: %v", at, err), "make the directory, or name another by --state-dir"
		return c
	}
	free := st.Bavail * uint64(st.Bsize)
	c.Detail = fmt.Sprintf("%s, %d MiB free", dir, free>>20)
	c.OK = free >= enoughSpace && st.Flags&unix.ST_RDONLY == 0
	if at != dir {
		c.Detail += " (it is made with the first graft)"
	}
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		c.Detail += ": read-only"
		c.Fix = "name a writable directory by --state-dir"
	case !c.OK:
		c.Fix = fmt.Sprintf("make room in the file system of %s: %d MiB", at, enoughSpace>>20)
	}
	return c
}

// checkLeftovers looks for folders of keepers that are gone.
func checkLeftovers(ctx context.Context, dir string) graft.Check {
	c := graft.Check{Name: "keepers"}
	living, dead, err := (&keeper.Client{StateDir: dir}).Keepers(ctx)
	if err != nil {
		c.Detail, c.Fix = err.Error(), "run as root"
		return c
	}
	c.OK, c.Detail = len(dead) == 0, fmt.Sprintf("%d run", living)
	if !c.OK {
		c.Detail += fmt.Sprintf("; %d left their folders: %s", len(dead), strings.Join(dead, ", "))
		c.Fix = "their layers are off; read keeper.log in the folder for the reason, then remove it"
	}
	return c
}

func checkStopped(dir string) graft.Check {
	c := graft.Check{Name: "stop", OK: true, Detail: "faults may start"}
	if err := keeper.CheckStopped(dir); err != nil {
		c.OK, c.Detail, c.Fix = false, err.Error(), "faultgraft release"
	}
	return c
}
