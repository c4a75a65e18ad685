package wfe.examples;

import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executor;

/**
 * What the environment says about the connection: WFE_TLS_CA, WFE_TLS_CERT and WFE_TLS_KEY name PEM
 * files, WFE_TOKEN is a token, and WFE_TOKEN_FILE a file with one.
 */
final class Connection {
  private static final String TOKEN = System.getenv("WFE_TOKEN");
  private static final String TOKEN_FILE = System.getenv("WFE_TOKEN_FILE");

  private Connection() {}

  static ChannelCredentials credentials() throws IOException {
    var ca = System.getenv("WFE_TLS_CA");
    if (ca == null) {
      if (TOKEN != null || TOKEN_FILE != null) {
        throw new IOException("a token is sent over TLS only: set WFE_TLS_CA");
      }
      return InsecureChannelCredentials.create();
    }
    var tls = TlsChannelCredentials.newBuilder().trustManager(new File(ca));
    var cert = System.getenv("WFE_TLS_CERT");
    if (cert != null) {
      tls.keyManager(new File(cert), new File(System.getenv("WFE_TLS_KEY")));
    }
    return TOKEN == null && TOKEN_FILE == null
        ? tls.build()
        : CompositeChannelCredentials.create(tls.build(), new Token());
  }

  /** Adds the token to each call, read anew, because tokens are replaced. */
  private static final class Token extends CallCredentials {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    @Override
    public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
      executor.execute(
          () -> {
            try {
              var token =
                  TOKEN_FILE == null ? TOKEN : Files.readString(Path.of(TOKEN_FILE)).strip();
              var headers = new Metadata();
              headers.put(AUTHORIZATION, "Bearer " + token);
              applier.apply(headers);
            } catch (IOException e) {
              applier.fail(Status.UNAUTHENTICATED.withDescription("WFE_TOKEN_FILE").withCause(e));
            }
          });
    }
  }
}
