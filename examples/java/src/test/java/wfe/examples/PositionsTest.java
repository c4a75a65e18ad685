package wfe.examples;

import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.ForwardingServerCall.SimpleForwardingServerCall;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.util.Objects;
import wfe.persistence.v1.CreateEventRequest;
import wfe.persistence.v1.CreateEventResponse;
import wfe.persistence.v1.EventServiceGrpc;
import wfe.persistence.v1.GetEventRequest;
import wfe.persistence.v1.GetEventResponse;

/** The positions that reads are sent with, against a server that tells them. */
public final class PositionsTest {
  private static final String FIRST = "home.1/00000001/0000000000000005";
  private static final String SECOND = "home.1/00000001/0000000000000006";
  private static final String WEST = "west.2/00000001/0000000000000001";

  /** What a write is told (null: nothing), whether it fails, and what the next read is sent with. */
  private record Step(String told, boolean fails, String known) {}

  private static volatile Step step;
  private static volatile String sent;

  public static void main(String[] args) throws Exception {
    var server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(new Events())
            .intercept(new Telling())
            .build()
            .start();
    var channel =
        Grpc.newChannelBuilder("127.0.0.1:" + server.getPort(), InsecureChannelCredentials.create())
            .build();
    var positions = ClientInterceptors.intercept(channel, new Positions());
    var events = EventServiceGrpc.newBlockingStub(positions);
    for (var each :
        new Step[] {
          new Step(null, false, null),
          new Step(SECOND, false, SECOND),
          new Step(FIRST, false, SECOND),
          new Step(WEST, false, WEST),
          new Step(null, false, "unknown"),
          new Step(FIRST, false, FIRST),
          new Step(null, true, "unknown"),
          new Step(SECOND, false, SECOND),
        }) {
      step = each;
      try {
        in(events, "a").createEvent(CreateEventRequest.getDefaultInstance());
      } catch (StatusRuntimeException e) {
        check(each.fails, "no failure");
      }
      in(events, "a").getEvent(GetEventRequest.getDefaultInstance());
      check(Objects.equals(sent, each.known), each + ": " + sent);
    }
    in(events, "b").getEvent(GetEventRequest.getDefaultInstance());
    check(sent == null, "another namespace: " + sent);
    channel.shutdownNow();
    server.shutdownNow().awaitTermination();
    System.out.println("ok");
  }

  private static EventServiceGrpc.EventServiceBlockingStub in(
      EventServiceGrpc.EventServiceBlockingStub events, String namespace) {
    var headers = new Metadata();
    headers.put(Positions.NAMESPACE, namespace);
    return events.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private static void check(boolean condition, String message) {
    if (!condition) {
      throw new AssertionError(message);
    }
  }

  /** Tells the position of a write, and remembers that of a read. */
  private static final class Telling implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      var writes = call.getMethodDescriptor().getBareMethodName().equals("CreateEvent");
      if (!writes) {
        sent = headers.get(Positions.POSITION);
      }
      return next.startCall(
          new SimpleForwardingServerCall<>(call) {
            @Override
            public void close(Status status, Metadata trailers) {
              if (writes && step.told != null) {
                trailers.put(Positions.POSITION, step.told);
              }
              super.close(status, trailers);
            }
          },
          headers);
    }
  }

  private static final class Events extends EventServiceGrpc.EventServiceImplBase {
    @Override
    public void createEvent(CreateEventRequest request, StreamObserver<CreateEventResponse> out) {
      if (step.fails) {
        out.onError(Status.UNAVAILABLE.asRuntimeException());
        return;
      }
      out.onNext(CreateEventResponse.getDefaultInstance());
      out.onCompleted();
    }

    @Override
    public void getEvent(GetEventRequest request, StreamObserver<GetEventResponse> out) {
      out.onNext(GetEventResponse.getDefaultInstance());
      out.onCompleted();
    }
  }
}
