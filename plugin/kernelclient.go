package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// InjectKernel has the agent arm kernel faults on one target: all, or none.
func (c *Client) InjectKernel(ctx context.Context, req KernelRequest) ([]KernelFault, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	var made []KernelFault
	err = c.ask(ctx, http.MethodPost, "/v1/kernel", body, &made)
	return made, err
}

// KernelFaults lists the kernel faults of this node, the oldest first.
func (c *Client) KernelFaults(ctx context.Context) ([]KernelFault, error) {
	var list []KernelFault
	err := c.ask(ctx, http.MethodGet, "/v1/kernel", nil, &list)
	return list, err
}

// EndKernel has the agent end a kernel fault, and returns it as it was.
func (c *Client) EndKernel(ctx context.Context, id string) (KernelFault, error) {
	var f KernelFault
	err := c.ask(ctx, http.MethodDelete, "/v1/kernel/"+url.PathEscape(id), nil, &f)
	return f, err
}

func (c *Client) ask(ctx context.Context, method, path string, body []byte, out any) error {
	b, err := c.do(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("faultgraft agent at %s: %s: %w", c.socket, path, err)
	}
	return nil
}

// answerError is an answer of the agent whose status says which error it was.
type answerError struct {
	error
	is []error
}

// Is makes it one of those that the status stands for; which of them follows from what was asked.
func (e *answerError) Is(target error) bool { return slices.Contains(e.is, target) }
