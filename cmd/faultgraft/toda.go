package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/chaosmesh"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// todaRules reads the injectors of toda that --toda-config names, for a layer over --path.
func todaRules(file, layer string, d policy.Defaults) ([]policy.Rule, error) {
	if file == "" {
		return nil, nil
	}
	if layer == "" {
		return nil, errors.New("--toda-config: give --path, which is toda's --path: the directory as the target sees it")
	}
	data, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("--toda-config: %w", err)
	}
	rules, err := chaosmesh.DecodeToda(file, data, layer, d)
	var places strictyaml.Errors
	if errors.As(err, &places) {
		return nil, errors.New(places.Detail())
	}
	return rules, err
}

// readFile reads a file, or standard input for "-"; no more of it than a
// document can have and one byte, so that what is too long is refused in words.
func readFile(name string) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	return io.ReadAll(io.LimitReader(in, strictyaml.MaxSize+1))
}
