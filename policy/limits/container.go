package limits

import (
	"maps"

	"github.com/faultgraft/faultgraft/policy/selection"
)

// Container is what limits look at.
type Container struct {
	// Namespace is the containerd namespace.
	Namespace string
	ID, Name  string
	// Pod and PodNamespace are empty for a container without a pod.
	Pod, PodNamespace string
	Image             string
	// Labels are labels and annotations of the container and its pod.
	Labels map[string]string
}

// Of gives what limits look at of a container that selectors look at.
func Of(c *selection.Container) *Container {
	out := &Container{Namespace: c.Namespace, ID: c.ID, Name: c.Name, Pod: c.Pod, PodNamespace: c.PodNamespace, Image: c.Image, Labels: c.Labels}
	if len(c.Annotations)+len(c.PodLabels)+len(c.PodAnnotations) > 0 {
		out.Labels = map[string]string{}
		for _, from := range []map[string]string{c.PodLabels, c.PodAnnotations, c.Labels, c.Annotations} {
			maps.Copy(out.Labels, from)
		}
	}
	return out
}
