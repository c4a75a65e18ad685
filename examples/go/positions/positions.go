// Package positions has the reads of a connection contain what was written on it before, also where the
// server reads from a replica: it keeps the positions that answers to writes tell, and sends them with
// what follows.
package positions

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	positionKey  = "wfe-lsn"
	namespaceKey = "wfe-namespace"

	// No replica has it, so the server reads from the primary.
	unknown = "unknown"
)

// Positions are up to where was written, in each namespace. The zero value is ready for use.
type Positions struct {
	mutex sync.Mutex
	known map[string]string
	// How often one was lost.
	losses int
}

// DialOptions have a connection use the positions. They go behind what sets the namespace.
func (p *Positions) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(p.unary),
		grpc.WithChainStreamInterceptor(p.stream),
	}
}

func (p *Positions) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	namespace := namespaceOf(ctx)
	ctx, losses := p.send(ctx, namespace)
	var trailer metadata.MD
	err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Trailer(&trailer))...)
	if !reads(method) {
		p.ended(namespace, trailer, err, losses)
	}
	return err
}

// stream is for those that read. Of the others (bulk requests, imports, moves) nobody can say here when
// they have ended, so what they may have written is behind an unknown position at once.
func (p *Positions) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	namespace := namespaceOf(ctx)
	ctx, _ = p.send(ctx, namespace)
	if !reads(method) {
		p.lose(namespace)
	}
	return open(ctx, desc, conn, method, opts...)
}

// send adds the position to the metadata of a call; writes don't mind. It returns how many were lost
// when the call began.
func (p *Positions) send(ctx context.Context, namespace string) (context.Context, int) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if position := p.known[namespace]; position != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, positionKey, position)
	}
	return ctx, p.losses
}

// ended notes what is known after a write.
func (p *Positions) ended(namespace string, trailer metadata.MD, err error, losses int) {
	told := first(trailer, positionKey)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	before := p.known[namespace]
	switch {
	case err != nil:
		// It may have been written all the same.
		p.loseLocked(namespace)
	case told == "":
		// This server has no replicas. If others have, those may not have replayed the write.
		if before != "" {
			p.loseLocked(namespace)
		}
	case before == unknown:
		// It says nothing of what was lost since it was begun.
		if losses == p.losses {
			p.keep(namespace, told)
		}
	case database(told) != database(before) || told > before:
		p.keep(namespace, told)
	}
}

func (p *Positions) lose(namespace string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.loseLocked(namespace)
}

func (p *Positions) loseLocked(namespace string) {
	p.losses++
	p.keep(namespace, unknown)
}

func (p *Positions) keep(namespace, position string) {
	if p.known == nil {
		p.known = map[string]string{}
	}
	p.known[namespace] = position
}

// reads tells whether an RPC changes nothing, by its name.
func reads(method string) bool {
	name := method[strings.LastIndex(method, "/")+1:]
	for _, prefix := range []string{"Get", "List", "Count", "Watch", "WaitFor", "Export"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// database returns what only positions of the same database have in common; others can't be compared.
func database(position string) string {
	name, _, _ := strings.Cut(position, "/")
	return name
}

func namespaceOf(ctx context.Context) string {
	sent, _ := metadata.FromOutgoingContext(ctx)
	return first(sent, namespaceKey)
}

func first(md metadata.MD, key string) string {
	if values := md.Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}
