package chain

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// license is what bpf_probe_read_kernel and bpf_get_stack ask for.
const license = "GPL"

// frame is one function of the chain, found in the running kernel.
type frame struct {
	source    Frame
	function  function
	tracer    tracer
	condition *condition // nil: any call
	// untraced says why no program can be attached to the function.
	untraced error

	enter, left *ebpf.Program
}

func compileFrame(f Frame, o Options, known *symbols, traced traceable) (*frame, error) {
	if slices.Contains(o.Hook, f.Function) {
		return nil, errors.New("it is the function that is to fail: a call of it does not run inside itself; a predicate over its parameters is the rule's where")
	}
	found, err := known.find(f.Function)
	if err != nil {
		return nil, err
	}
	compiled := &frame{source: f, function: found}
	if compiled.tracer, err = traced.tracer(found); err != nil {
		compiled.untraced = err
	}
	if f.Predicate == "" {
		return compiled, nil
	}
	switch {
	case compiled.untraced != nil:
		return nil, compiled.untraced
	case !found.whole:
		return nil, fmt.Errorf("the compiler made %s of it, which may have other parameters: it can be a frame without a predicate only", found.clones[0])
	}
	if compiled.condition, err = newCondition(f, traced.types(found.module)); err != nil {
		return nil, err
	}
	if _, err := compiled.condition.code(compiled.tracer); err != nil {
		return nil, err
	}
	return compiled, nil
}

// entryProgram and exitProgram describe the programs for the frame's tracer.
func (f *frame) entryProgram(a assembler, index int, o Options) (*ebpf.ProgramSpec, error) {
	var scope asm.Instructions
	var err error
	if o.InScope != nil {
		if scope, err = o.InScope(out, "scope", -ownBytes); err != nil {
			return nil, err
		}
	}
	where, err := f.condition.code(f.tracer)
	if err != nil {
		return nil, err
	}
	return f.program(ebpf.AttachTraceFEntry, programName(o.Name, fmt.Sprintf("in%d", index)), a.entry(index, f.tracer, scope, where)), nil
}

func (f *frame) exitProgram(a assembler, index int, o Options) *ebpf.ProgramSpec {
	return f.program(ebpf.AttachTraceFExit, programName(o.Name, fmt.Sprintf("out%d", index)), a.exit(f.tracer))
}

func (f *frame) program(kind ebpf.AttachType, name string, ins asm.Instructions) *ebpf.ProgramSpec {
	spec := &ebpf.ProgramSpec{Name: name, License: license, Instructions: ins}
	if f.tracer == trampoline {
		spec.Type, spec.AttachType, spec.AttachTo = ebpf.Tracing, kind, f.function.name
	} else {
		spec.Type = ebpf.Kprobe
	}
	return spec
}

// programName fits into the kernel's BPF_OBJ_NAME_LEN, 15 characters.
func programName(name, part string) string {
	const length = 15
	if room := length - len(part) - 1; len(name) > room {
		name = name[:room]
	}
	return name + "_" + part
}

// load loads the programs; where the kernel has no trampoline for the function
// after all, those for kprobes.
func (f *frame) load(a assembler, index int, o Options) error {
	err := f.loadAs(a, index, o)
	if err == nil || f.tracer == kprobe || !kprobes() {
		return err
	}
	f.tracer = kprobe
	if again := f.loadAs(a, index, o); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

func (f *frame) loadAs(a assembler, index int, o Options) error {
	spec, err := f.entryProgram(a, index, o)
	if err != nil {
		return err
	}
	pair := ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"enter": spec, "left": f.exitProgram(a, index, o)}}
	loaded, err := ebpf.NewCollectionWithOptions(&pair, ebpf.CollectionOptions{Cache: o.Cache})
	if err != nil {
		return fmt.Errorf("programs for its entry and its return: %w", err)
	}
	f.enter, f.left = loaded.DetachProgram("enter"), loaded.DetachProgram("left")
	loaded.Close()
	return nil
}

// attach returns what it attached, the exit first, also with an error.
func (f *frame) attach(a assembler, index int, o Options) ([]link.Link, error) {
	links, err := f.attachAs()
	if err == nil || f.tracer == kprobe || !kprobes() {
		return links, err
	}
	// Trampolines of arm64 need Linux 6.4, for instance; the load does not tell.
	for _, l := range links {
		err = errors.Join(err, l.Close())
	}
	if again := f.close(); again != nil {
		return nil, errors.Join(err, again)
	}
	f.tracer = kprobe
	if again := f.loadAs(a, index, o); again != nil {
		return nil, errors.Join(err, again)
	}
	if links, again := f.attachAs(); again != nil {
		return links, errors.Join(err, again)
	} else {
		return links, nil
	}
}

func (f *frame) attachAs() ([]link.Link, error) {
	var links []link.Link
	for _, p := range []*ebpf.Program{f.left, f.enter} {
		var l link.Link
		var err error
		switch {
		case f.tracer == trampoline:
			l, err = link.AttachTracing(link.TracingOptions{Program: p})
		case p == f.left:
			l, err = link.Kretprobe(f.probed(), p, nil)
		default:
			l, err = link.Kprobe(f.probed(), p, nil)
		}
		if err != nil {
			return links, fmt.Errorf("attaching to it: %w", err)
		}
		links = append(links, l)
	}
	return links, nil
}

// probed is the symbol for a kprobe: a clone if there is nothing else.
func (f *frame) probed() string {
	if f.function.whole {
		return f.function.name
	}
	return f.function.clones[0]
}

func (f *frame) close() error {
	var errs []error
	for _, p := range []*ebpf.Program{f.enter, f.left} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	f.enter, f.left = nil, nil
	return errors.Join(errs...)
}
