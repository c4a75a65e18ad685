package wfe.examples;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Pattern;

/**
 * Has the reads of a channel contain what was written on it before, also where the server reads from a
 * replica: keeps the positions that answers to writes tell, of each namespace, and sends them with what
 * follows. What sets the namespace goes before it, so it is given to {@code
 * ClientInterceptors.intercept} first.
 */
public final class Positions implements ClientInterceptor {
  static final Metadata.Key<String> POSITION =
      Metadata.Key.of("wfe-lsn", Metadata.ASCII_STRING_MARSHALLER);
  static final Metadata.Key<String> NAMESPACE =
      Metadata.Key.of("wfe-namespace", Metadata.ASCII_STRING_MARSHALLER);

  /** No replica has it, so the server reads from the primary. */
  private static final String UNKNOWN = "unknown";

  private static final Pattern READS = Pattern.compile("(Get|List|Count|Watch|WaitFor|Export).*");

  private final Map<String, String> known = new HashMap<>();

  /** How often one was lost. */
  private long losses;

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    var reads = READS.matcher(method.getBareMethodName()).matches();
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      @Override
      public void start(Listener<A> listener, Metadata headers) {
        var sent = headers.get(NAMESPACE);
        var namespace = sent == null ? "" : sent;
        var lossesBefore = send(namespace, headers);
        super.start(
            reads
                ? listener
                : new SimpleForwardingClientCallListener<A>(listener) {
                  @Override
                  public void onClose(Status status, Metadata trailers) {
                    ended(namespace, status, trailers.get(POSITION), lossesBefore);
                    super.onClose(status, trailers);
                  }
                },
            headers);
      }
    };
  }

  /** Adds the position to a call, which writes don't mind; returns how many were lost by then. */
  private synchronized long send(String namespace, Metadata headers) {
    var position = known.get(namespace);
    if (position != null) {
      headers.put(POSITION, position);
    }
    return losses;
  }

  /** Notes what is known after a write. */
  private synchronized void ended(
      String namespace, Status status, String told, long lossesBefore) {
    var before = known.getOrDefault(namespace, "");
    if (!status.isOk() || (told == null && !before.isEmpty())) {
      // It may have been written all the same; or this server has no replicas, but others have, which
      // may not have replayed it.
      losses++;
      known.put(namespace, UNKNOWN);
    } else if (told != null
        && (before.equals(UNKNOWN)
            // It says nothing of what was lost since it was begun.
            ? losses == lossesBefore
            : !database(told).equals(database(before)) || told.compareTo(before) > 0)) {
      known.put(namespace, told);
    }
  }

  /** What only positions of the same database have in common; others can't be compared. */
  private static String database(String position) {
    return position.split("/", 2)[0];
  }
}
