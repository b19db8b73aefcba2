package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/faultgraft/faultgraft/plugin/policies"
)

// ApplyPolicies has the agent apply manifests: all of them, or none. file is what
// they are called in errors. dry: nothing is applied; the results say who would get what.
func (c *Client) ApplyPolicies(ctx context.Context, file string, text []byte, dry bool) ([]policies.Result, error) {
	path := "/v1/policies"
	if dry {
		path += "?dryRun=true"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://faultgraft"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set(FileHeader, file)
	req.Header.Set("Content-Type", "application/yaml")
	b, err := c.send(req)
	if err != nil {
		return nil, err
	}
	var out []policies.Result
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("faultgraft agent at %s: %s: %w", c.socket, path, err)
	}
	return out, nil
}

// Policies lists the policies of the node by name, without their targets.
func (c *Client) Policies(ctx context.Context) ([]policies.Status, error) {
	var out []policies.Status
	err := c.get(ctx, "/v1/policies", &out)
	return out, err
}

// Policy gives a policy with its targets. ErrNoPolicy: there is none of that name.
func (c *Client) Policy(ctx context.Context, name string) (policies.Status, error) {
	return c.policy(ctx, http.MethodGet, name, "")
}

// DeletePolicy takes a policy's faults off and forgets it; it is returned as it was.
func (c *Client) DeletePolicy(ctx context.Context, name string) (policies.Status, error) {
	return c.policy(ctx, http.MethodDelete, name, "")
}

// PausePolicy takes a policy's faults off; its time stands until ResumePolicy.
func (c *Client) PausePolicy(ctx context.Context, name string) (policies.Status, error) {
	return c.policy(ctx, http.MethodPost, name, "/pause")
}

// ResumePolicy lets a policy go on that was paused, or that a guard stopped.
func (c *Client) ResumePolicy(ctx context.Context, name string) (policies.Status, error) {
	return c.policy(ctx, http.MethodPost, name, "/resume")
}

func (c *Client) policy(ctx context.Context, method, name, what string) (policies.Status, error) {
	var out policies.Status
	b, err := c.do(ctx, method, "/v1/policies/"+url.PathEscape(name)+what, http.NoBody)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
}
