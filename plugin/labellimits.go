package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// errNoImage: containerd does not have the image of a container any more.
var errNoImage = errors.New("containerd does not have the image any more")

// limited is the container as limits look at it.
func (c *Container) limited() *limits.Container {
	return &limits.Container{Namespace: c.Namespace, ID: c.ID, Name: c.Name, Pod: c.Pod, PodNamespace: c.PodNamespace, Image: c.Image, Labels: c.Labels}
}

// rulesOfImage finds the rules among a container's labels that its image brought
// along: containerd copies the labels of an image's configuration to its
// containers (client.WithImageConfigLabels, BuildLabels of the CRI plugin). Who
// built an image must not be able to ask for faults on a node. A label that the
// user gave with the very same value counts as the image's.
func (r *reconciler) rulesOfImage(ctx context.Context, c *Container) (refused map[string]string, err error) {
	var keys []string
	for k := range c.Labels {
		if rule, _, _ := ours(k); !c.annotated[k] && rule != enableKey && hasRules(map[string]string{k: ""}) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 || c.Image == "" || r.imageLabels == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	own, err := r.imageLabels(ctx, c.Namespace, c.Image)
	gone := errors.Is(err, errNoImage)
	if err != nil && !gone {
		return nil, err
	}
	refused = map[string]string{}
	for _, k := range keys {
		switch v, ok := own[k]; {
		case gone:
			refused[k] = fmt.Sprintf("cannot be told from a label of the image %s: %v", c.Image, err)
		case ok && v == c.Labels[k]:
			refused[k] = fmt.Sprintf("comes from the image %s, and an image cannot ask for faults", c.Image)
		}
	}
	return refused, nil
}

// allowedRules gives what a container's labels ask for, as far as they may on
// this node; what they may not is a problem that names the limit.
func allowedRules(c *Container, l *limits.Limits, fromImage map[string]string) policy.Result {
	labels := c.Labels
	if len(fromImage) > 0 {
		labels = maps.Clone(labels)
		maps.DeleteFunc(labels, func(k, _ string) bool { return fromImage[k] != "" })
	}
	result := policy.ParseLabels(policy.Subject{Labels: labels, ContainerName: c.Name}, l.Defaults(limits.Labels))
	if result.Disabled {
		return result
	}
	var problems []*policy.SyntaxError
	for _, k := range slices.Sorted(maps.Keys(fromImage)) {
		problems = append(problems, &policy.SyntaxError{Source: k, Message: fromImage[k], Fix: "give the container a label or annotation of its own"})
	}
	if len(result.Rules)+len(result.Policies)+len(result.Problems) > 0 {
		if err := l.AllowsContainer(limits.Labels, c.limited()); err != nil {
			problems = append(problems, refusal(c.firstRule(), err))
			result.Rules, result.Policies = nil, nil
		}
	}
	result.Rules = slices.DeleteFunc(result.Rules, func(rule policy.Rule) bool {
		err := l.AllowsRule(limits.Labels, &rule)
		if err != nil {
			problems = append(problems, refusal(c.keyOf(rule.Name), err))
		}
		return err != nil
	})
	result.Problems = append(problems, result.Problems...)
	for _, p := range result.Problems {
		p.Kind = "label"
		if c.annotated[p.Source] {
			p.Kind = "annotation"
		}
	}
	return result
}

func refusal(key string, err error) *policy.SyntaxError {
	e := &policy.SyntaxError{Source: key, Message: err.Error()}
	var limit *limits.Error
	if errors.As(err, &limit) {
		e.Message, e.Fix = fmt.Sprintf("%s (%s)", limit.Message, limit.Limit), limit.Fix
	}
	return e
}

// firstRule is the first key of the container that asks for something.
func (c *Container) firstRule() string {
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		if rule, _, ok := ours(k); ok && rule != enableKey {
			return k
		}
	}
	return domain[1:]
}

// keyOf is the label or annotation that a rule came from.
func (c *Container) keyOf(rule string) string {
	for _, suffix := range []string{"/container." + c.Name, "/pod", ""} {
		if _, ok := c.Labels[rule+domain+suffix]; ok {
			return rule + domain + suffix
		}
	}
	return rule + domain
}
