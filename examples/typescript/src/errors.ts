import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { ErrorReason } from "../gen/wfe/persistence/v1/error_reason_pb.js";

/** The machine-readable part of a failed call; the message text is for people. */
export interface Failure {
  code: Code;
  reason: keyof typeof ErrorReason;
  metadata: Record<string, string>;
  /** The path of each invalid field and the violation, such as JSON_INVALID. */
  fields: Record<string, string>;
}

/** Reads the details of an error; an error from elsewhere has reason UNSPECIFIED. */
export function failure(error: unknown): Failure {
  const connectError = ConnectError.from(error);
  const info = connectError.findDetails(ErrorInfoSchema).find((i) => i.domain === "wfe.persistence");
  const fields = connectError
    .findDetails(BadRequestSchema)
    .flatMap((badRequest) => badRequest.fieldViolations)
    .map((violation) => [violation.field, violation.reason]);
  const reason = info?.reason ?? "";
  return {
    code: connectError.code,
    reason: isReason(reason) ? reason : "UNSPECIFIED",
    metadata: { ...info?.metadata },
    fields: Object.fromEntries(fields),
  };
}

function isReason(name: string): name is keyof typeof ErrorReason {
  return name in ErrorReason;
}

/** Makes a call that must fail, and returns why it did. */
export async function refused(
  reason: keyof typeof ErrorReason,
  call: () => Promise<unknown>,
): Promise<Failure> {
  try {
    await call();
  } catch (error) {
    const said = failure(error);
    if (said.reason === reason) return said;
    throw error;
  }
  throw new Error(`expected ${reason}`);
}
