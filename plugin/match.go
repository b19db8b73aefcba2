package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// ErrNotFound: no container answers to a name.
var ErrNotFound = errors.New("no such container")

// names are the ways to write a container in full.
func (c *Container) names() []string {
	n := []string{c.Name, c.Namespace + "/" + c.Name, c.Namespace + "/" + c.ID}
	if c.Pod != "" {
		n = append(n, c.Pod, c.Pod+"/"+c.Name, c.PodNamespace+"/"+c.Pod, c.PodNamespace+"/"+c.Pod+"/"+c.Name)
	}
	return n
}

// match finds the one container that ref means: a whole id, else a name, else
// the beginning of an id; of several, those that run.
func match(all []Container, ref string) (Container, error) {
	if ref == "" {
		return Container{}, errors.New("no container named: give a name or the beginning of an id")
	}
	ways := []func(*Container) bool{
		func(c *Container) bool { return c.ID == ref },
		func(c *Container) bool { return slices.Contains(c.names(), ref) },
		func(c *Container) bool { return strings.HasPrefix(c.ID, ref) },
	}
	for _, way := range ways {
		var hits, running []Container
		for _, c := range all {
			if way(&c) {
				hits = append(hits, c)
				if c.PID != 0 {
					running = append(running, c)
				}
			}
		}
		switch {
		case len(hits) == 0:
			continue
		case len(running) == 1:
			return running[0], nil
		case len(running) > 1:
			return Container{}, ambiguous(ref, running)
		case len(hits) == 1:
			return Container{}, fmt.Errorf("container %s (%s) is not running; start it first", ref, hits[0].Key)
		default:
			return Container{}, fmt.Errorf("none of the containers named %s is running: %s", ref, lines(hits))
		}
	}
	return Container{}, fmt.Errorf("%w: %s; `faultgraft ps` lists those that there are", ErrNotFound, ref)
}

func ambiguous(ref string, hits []Container) error {
	return fmt.Errorf("%s means several containers; name one of them in full: %s", ref, lines(hits))
}

func lines(cs []Container) string {
	out := make([]string, 0, len(cs))
	for _, c := range cs {
		full := c.Namespace + "/" + c.ID
		if c.Pod != "" {
			full += " (" + c.PodNamespace + "/" + c.Pod + "/" + c.Name + ")"
		} else if c.Name != c.ID {
			full += " (" + c.Name + ")"
		}
		out = append(out, full)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// target turns a match into a target, or says why nothing may touch it.
func (c *Container) target() (keeper.Target, error) {
	if c.Protected != "" {
		return keeper.Target{}, fmt.Errorf("container %s (%s): refused: %s", c.DisplayName(), c.Key, c.Protected)
	}
	if policy.ParseLabels(policy.Subject{Labels: c.Labels, ContainerName: c.Name}, policy.Defaults{}).Disabled {
		return keeper.Target{}, fmt.Errorf("container %s (%s): refused: it carries enable%s=false, which beats everything", c.DisplayName(), c.Key, domain)
	}
	return c.Target(), nil
}

// checkProcess says when a container's first process started, or why it must
// not be touched. start is 0 if there is no such process.
func checkProcess(pid int) (start uint64, err error) {
	if start, err = startTime(pid); err != nil {
		return 0, err
	}
	t, err := graft.CheckTarget(pid)
	if err != nil {
		return start, err
	}
	if t.Tree {
		return start, fmt.Errorf("pid %d: refused: it shares the host's mount namespace, where a fault would reach the host; a container needs a mount namespace of its own", pid)
	}
	return t.StartTime, nil
}

// resolveTimeout bounds what Resolve asks of containerd.
const resolveTimeout = 10 * time.Second

// ResolveOptions say where Resolve looks, and what it may find.
type ResolveOptions struct {
	// Address is containerd's socket; empty means DefaultContainerdAddress.
	Address string
	// Namespaces are the containerd namespaces to look in; none means all.
	Namespaces []string
	// Limits say which containers are protected.
	Limits limits.Limits
}

// Resolve finds the container that ref means without an agent, by asking
// containerd. ref is an id or the beginning of one, a nerdctl name, a CRI
// container's name, pod, POD/NAME or NAMESPACE/POD/NAME, or
// CONTAINERD-NAMESPACE/NAME. Several matches are an error that lists them. Pause
// containers, protected containers and processes that faultgraft must not touch
// are refused.
func Resolve(ctx context.Context, o ResolveOptions, ref string) (keeper.Target, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	address, only := cmp.Or(o.Address, DefaultContainerdAddress), o.Namespaces
	d, err := dialContainerd(address)
	if err != nil {
		return keeper.Target{}, err
	}
	defer func() { _ = d.Close() }() // only read from
	all, err := d.listAll(ctx, only)
	if err != nil {
		return keeper.Target{}, fmt.Errorf("look for container %s: %w", ref, err)
	}
	c, err := match(all, ref)
	if errors.Is(err, ErrNotFound) {
		if k, serr := d.sandboxNamed(ctx, only, ref); serr == nil {
			return keeper.Target{}, fmt.Errorf("container %s: refused: %w", k, errSandbox)
		}
	}
	if err != nil {
		return keeper.Target{}, err
	}
	if err := o.Limits.Protects(c.limited()); err != nil {
		c.Protected = err.Error()
	}
	if c.StartTime, err = checkProcess(c.PID); err != nil {
		return keeper.Target{}, fmt.Errorf("container %s (%s): %w", c.DisplayName(), c.Key, err)
	}
	return c.target()
}
