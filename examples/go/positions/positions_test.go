package positions

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "wfe-persistence/examples/go/gen/wfe/persistence/v1"
)

const (
	first5  = "home.1/00000001/0000000000000005"
	second6 = "home.1/00000001/0000000000000006"
	west    = "west.2/00000001/0000000000000001"
)

// server answers writes with what the test says, and remembers what reads were sent with.
type server struct {
	pb.UnimplementedEventServiceServer
	told string
	err  error
	sent string
}

func (s *server) CreateEvent(ctx context.Context, _ *pb.CreateEventRequest) (*pb.CreateEventResponse, error) {
	if s.told != "" {
		if err := grpc.SetTrailer(ctx, metadata.Pairs(positionKey, s.told)); err != nil {
			return nil, err
		}
	}
	return &pb.CreateEventResponse{}, s.err
}

func (s *server) GetEvent(ctx context.Context, _ *pb.GetEventRequest) (*pb.GetEventResponse, error) {
	received, _ := metadata.FromIncomingContext(ctx)
	s.sent = first(received, positionKey)
	return &pb.GetEventResponse{}, nil
}

func connected(t *testing.T) (*server, pb.EventServiceClient) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answering, served := &server{}, grpc.NewServer()
	pb.RegisterEventServiceServer(served, answering)
	go served.Serve(listener)
	t.Cleanup(served.Stop)
	options := append(new(Positions).DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient(listener.Addr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return answering, pb.NewEventServiceClient(conn)
}

func TestReadsAreSentWithWhatWritesWereTold(t *testing.T) {
	server, events := connected(t)
	in := func(namespace string) context.Context {
		return metadata.AppendToOutgoingContext(context.Background(), namespaceKey, namespace)
	}
	read := func(ctx context.Context) string {
		t.Helper()
		if _, err := events.GetEvent(ctx, &pb.GetEventRequest{Id: "e"}); err != nil {
			t.Fatal(err)
		}
		return server.sent
	}
	for _, step := range []struct {
		told, known string
		err         error
	}{
		{"", "", nil},
		{second6, second6, nil},
		{first5, second6, nil},
		{west, west, nil},
		{"", unknown, nil},
		{first5, first5, nil},
		{"", unknown, status.Error(codes.Unavailable, "lost")},
		{second6, second6, nil},
	} {
		server.told, server.err = step.told, step.err
		_, err := events.CreateEvent(in("a"), &pb.CreateEventRequest{})
		if (err != nil) != (step.err != nil) {
			t.Fatal(err)
		}
		if found := read(in("a")); found != step.known {
			t.Errorf("told %q, sent %q, not %q", step.told, found, step.known)
		}
	}
	if found := read(in("b")); found != "" {
		t.Errorf("another namespace: %q", found)
	}
}

func TestWhatIsLostIsKnownAgainOnlyFromAWriteThatWasBegunLater(t *testing.T) {
	var positions Positions
	_, begun := positions.send(context.Background(), "a")
	positions.lose("a")
	positions.ended("a", metadata.Pairs(positionKey, first5), nil, begun)
	if found := positions.known["a"]; found != unknown {
		t.Error(found)
	}
	_, begun = positions.send(context.Background(), "a")
	positions.ended("a", metadata.Pairs(positionKey, first5), nil, begun)
	if found := positions.known["a"]; found != first5 {
		t.Error(found)
	}
}
