package wfe.examples;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.MethodDescriptor;
import java.util.concurrent.TimeUnit;

/** Gives every call its own deadline: without one, the server's default applies. */
final class Deadlines implements ClientInterceptor {
  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return next.newCall(
        method,
        options.getDeadline() == null ? options.withDeadlineAfter(10, TimeUnit.SECONDS) : options);
  }
}
