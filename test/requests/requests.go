// Package requests sends to a socket of faultgraft's what somebody sends who means harm.
package requests

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Request is one in a wrong form.
type Request struct{ Method, Path, Body string }

// Hostile are requests in wrong forms. post is where JSON is taken whose field is a text, one below that path where an id ends it.
func Hostile(post, field, below string) map[string]Request {
	return map[string]Request{
		"not JSON":      {"POST", post, "\x00\xff"},
		"half":          {"POST", post, `{"` + field + `":"/`},
		"other field":   {"POST", post, `{"` + field + `":"/x","shell":"rm"}`},
		"wrong type":    {"POST", post, `{"` + field + `":["/x"]}`},
		"too large":     {"POST", post, `{"` + field + `":"` + strings.Repeat("x", 5<<20) + `"}`},
		"deep":          {"POST", post, strings.Repeat("[", 20000)},
		"path as id":    {"DELETE", below + "..%2f..%2f..%2fetc%2fpasswd", ""},
		"NUL in the id": {"DELETE", below + "%00", ""},
		"long id":       {"DELETE", below + strings.Repeat("g", 8000), ""},
		"huge header":   {"GET", post + "?" + strings.Repeat("x", 1<<20), ""},
		"method":        {"TRACE", post, ""},
		"elsewhere":     {"GET", "/../../etc/passwd", ""},
	}
}

// Refused sends each, beside many connections on which a request is begun and not ended, and wants all to be answered with an error that is
// theirs, or hung up on; alive is then answered still.
func Refused(t *testing.T, socket string, all map[string]Request, alive string) {
	t.Helper()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for i := range 200 { // they begin, and say no more
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		_, _ = io.WriteString(c, []string{"", "G", "GET / HTTP/1.1\r\nHost: x\r\n", "POST " + all["half"].Path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{\"path\":"}[i%4])
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	defer client.CloseIdleConnections()
	for name, r := range all {
		req, err := http.NewRequest(r.Method, "http://faultgraft"+r.Path, strings.NewReader(r.Body))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp, err := client.Do(req)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: no answer", name)
		}
		if err != nil {
			continue // hung up on
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 300 || resp.StatusCode >= 500 {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	resp, err := client.Get("http://faultgraft" + alive)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("afterwards: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}
