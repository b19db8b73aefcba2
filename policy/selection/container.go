// Package selection decides which containers a policy is for: the selectors,
// and the choice among those that match. It is pure.
package selection

import "time"

// Container is what selectors look at.
type Container struct {
	// Namespace is the containerd namespace.
	Namespace, ID, Name string
	// Pod and PodNamespace are empty for a container without a pod.
	Pod, PodNamespace string
	// Image is the reference as the runtime has it.
	Image                                          string
	Labels, Annotations, PodLabels, PodAnnotations map[string]string
	// Started is when its task was started; zero: it is not running.
	Started time.Time
	// Policies are policies that the container itself asks for by name, as far as it may: it matches them like a selector.
	Policies []string
	// Protected containers are never chosen and never counted.
	Protected bool
}

// Identity is what the choice hashes. A container keeps it over a restart: the
// name and, of a pod, the pod's.
func (c *Container) Identity() string {
	name := c.Name
	if name == "" {
		name = c.ID
	}
	return c.Namespace + "/" + c.PodNamespace + "/" + c.Pod + "/" + name
}
