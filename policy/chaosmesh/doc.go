// Package chaosmesh reads the manifests of Chaos Mesh that are about file and
// kernel faults (IOChaos, KernelChaos, and Schedule around them, of
// chaos-mesh.org/v1alpha1), and the injector configuration of its toda, as
// policies and rules of faultgraft. Every field is carried over or refused by
// its name; docs/chaos-mesh.md says which, and what differs. The types follow
// api/v1alpha1 of chaos-mesh/chaos-mesh and src/injector/injector_config.rs of
// chaos-mesh/toda, as they were in August 2026.
package chaosmesh
