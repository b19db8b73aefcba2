package main

import (
	"context"
	"net"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
)

// emptyContainerd answers an agent as a containerd does that has no containers: it
// has no namespaces, and no events come. What is measured goes through NRI.
type emptyContainerd struct {
	namespacesapi.UnimplementedNamespacesServer
	eventsapi.UnimplementedEventsServer
}

// serveEmptyContainerd listens on a socket until stop is called.
func serveEmptyContainerd(socket string) (stop func(), err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	namespacesapi.RegisterNamespacesServer(s, emptyContainerd{})
	eventsapi.RegisterEventsServer(s, emptyContainerd{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Stop
	}()
	return func() { s.Stop(); <-done }, nil
}

// List implements the service of namespaces.
func (emptyContainerd) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	return &namespacesapi.ListNamespacesResponse{}, nil
}

// Subscribe implements the service of events.
func (emptyContainerd) Subscribe(_ *eventsapi.SubscribeRequest, stream eventsapi.Events_SubscribeServer) error {
	<-stream.Context().Done()
	return nil
}
