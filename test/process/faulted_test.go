package process

import "github.com/faultgraft/faultgraft/plugin/keeper"

// faulted is a target with a layer over its folder: it is in there, with a file of ten digits open, at the fifth.
type faulted struct {
	*holder
	r      *rig
	file   string
	before map[string]string // the layer
	graft  keeper.Graft
}

// startFaulted starts one that meets a fault of fsync, for as long as ttl says.
func (r *rig) startFaulted(ttl string) *faulted {
	r.t.Helper()
	o := &faulted{holder: r.start(), r: r, file: r.write("f", "0123456789")}
	o.ok("open f %s rdwr", o.file)
	o.ok("lseek f 4")
	o.ok("chdir %s", r.data)
	o.before = o.snapshot()
	o.graft = r.inject(o.holder, r.data, "io error=EIO op=fsync ttl="+ttl)
	o.is("EIO", "fsync f")
	return o
}

// reads: its calls are answered, by whomever.
func (o *faulted) reads() {
	o.t.Helper()
	o.is("ok 456789", "read f 100")
	o.ok("lseek f 4")
}

// asBefore: it has what it had before the layer, and meets no fault.
func (o *faulted) asBefore() {
	o.t.Helper()
	o.is("ok", "fsync f")
	o.reads()
	same(o.t, o.before, o.snapshot())
}
