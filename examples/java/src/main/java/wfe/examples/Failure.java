package wfe.examples;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.Map;
import java.util.TreeMap;
import wfe.persistence.v1.ErrorReason;

/**
 * The machine-readable part of a failed call; the message text is for people.
 *
 * @param reason why it failed; UNSPECIFIED if the error comes from elsewhere
 * @param metadata details of the reason, such as the stored revision
 * @param fields the path of each invalid field and the violation, such as JSON_INVALID
 */
record Failure(ErrorReason reason, Map<String, String> metadata, Map<String, String> fields) {

  static Failure of(StatusRuntimeException error) {
    var reason = ErrorReason.ERROR_REASON_UNSPECIFIED;
    var metadata = new TreeMap<String, String>();
    var fields = new TreeMap<String, String>();
    var status = StatusProto.fromThrowable(error);
    try {
      for (Any detail : status.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          var info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals("wfe.persistence")) {
            reason = reasonNamed(info.getReason());
            metadata.putAll(info.getMetadataMap());
          }
        } else if (detail.is(BadRequest.class)) {
          for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            fields.put(violation.getField(), violation.getReason());
          }
        }
      }
    } catch (InvalidProtocolBufferException e) {
      e.addSuppressed(error);
      throw new IllegalStateException(e);
    }
    return new Failure(reason, metadata, fields);
  }

  /** A reason by its name; UNSPECIFIED if it is newer than these stubs. */
  private static ErrorReason reasonNamed(String name) {
    var value = ErrorReason.getDescriptor().findValueByName("ERROR_REASON_" + name);
    return value == null ? ErrorReason.ERROR_REASON_UNSPECIFIED : ErrorReason.valueOf(value);
  }

  /** Makes a call that must fail for that reason. */
  static Failure expect(ErrorReason reason, Runnable call) {
    try {
      call.run();
    } catch (StatusRuntimeException e) {
      var failure = of(e);
      if (failure.reason == reason) {
        return failure;
      }
      throw e;
    }
    throw new IllegalStateException("expected " + reason);
  }

  @Override
  public String toString() {
    return reason.name().replaceFirst("ERROR_REASON_", "") + " " + metadata + " " + fields;
  }
}
