package workload

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redisClient speaks RESP, the protocol of Redis, as far as the tests need it.
type redisClient struct {
	net.Conn
	in *bufio.Reader
}

func dialRedis(socket string) (*redisClient, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &redisClient{conn, bufio.NewReader(conn)}, nil
}

// do sends commands in one go and returns their answers; an answer that is an error ends it.
func (c *redisClient) do(commands ...[]string) ([]string, error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, args := range commands {
		fmt.Fprintf(&b, "*%d\r\n", len(args))
		for _, a := range args {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
		}
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return nil, err
	}
	answers := make([]string, 0, len(commands))
	for range commands {
		a, err := c.answer()
		if err != nil {
			return answers, err
		}
		answers = append(answers, a)
	}
	return answers, nil
}

// answer reads a simple string, a number or a bulk string; what is not there is "".
func (c *redisClient) answer() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", errors.New("an empty answer")
	}
	switch line[0] {
	case '+', ':':
		return line[1:], nil
	case '-':
		return "", errors.New(line[1:])
	case '$':
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 {
			return "", err
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(c.in, b)
		return string(b[:n]), err
	}
	return "", fmt.Errorf("answer %q", line)
}

// persistence is the section of that name of INFO.
func (c *redisClient) persistence() (map[string]string, error) {
	a, err := c.do([]string{"INFO", "persistence"})
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(a[0]) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info, nil
}
