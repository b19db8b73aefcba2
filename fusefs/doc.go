// Package fusefs is the fault layer: a FUSE file system that shows what lies
// under it, unchanged, and fails or delays the operations that rules name.
//
// It works on handles, not on paths: every node that the kernel knows is an
// O_PATH descriptor, every open file a descriptor of its own or the very open
// file description that a process had before the layer came (adoption).
// Nothing in it knows of containers: whoever uses it makes the mount, hands
// over the /dev/fuse descriptor and the directory or file below, and moves the
// mount where it belongs once Serve has returned.
//
// docs/layer.md says what each operation does, what is cached, and where the
// layer can be told from the file system under it.
package fusefs
