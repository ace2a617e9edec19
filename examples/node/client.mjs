/**
 * Talks to a coordinator over gRPC. All it knows of Stagecoach are the `.proto` files, with the
 * published ones of Google that lie beside them.
 */

import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));

const definition = protoLoader.loadSync(
  ["stagecoach/v1/generation.proto", "google/rpc/error_details.proto"],
  { includeDirs: [PROTOS], keepCase: true, longs: Number, enums: String, oneofs: true },
);
const { GenerationService } = grpc.loadPackageDefinition(definition).stagecoach.v1;
const Status = definition["google.rpc.Status"];
const ErrorInfo = definition["google.rpc.ErrorInfo"];

/** Why a call failed. */
export class StagecoachError extends Error {
  /**
   * @param {string} code Name of the gRPC status, such as "INVALID_ARGUMENT".
   * @param {string} message What went wrong, with the numbers.
   * @param {string | null} reason Kind of the error, such as "CONTEXT_LENGTH_EXCEEDED"; null when
   *   it does not come from the coordinator itself.
   * @param {Record<string, string>} details What the kind says besides, such as the `field`.
   */
  constructor(code, message, reason, details) {
    super(message);
    this.name = "StagecoachError";
    this.code = code;
    this.reason = reason;
    this.details = details;
  }

  /** Reads the error that a call ended with. */
  static of(error) {
    const [info] = richStatus(error).filter(({ domain }) => domain === "stagecoach");
    return new StagecoachError(
      grpc.status[error.code],
      error.details,
      info?.reason ?? null,
      info?.metadata ?? {},
    );
  }
}

/** The `google.rpc.ErrorInfo`s that travel beside the code and message of a call. */
function richStatus(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (bytes === undefined) {
    return [];
  }
  return (Status.deserialize(bytes).details ?? [])
    .filter(({ type_url: type }) => type.endsWith("/google.rpc.ErrorInfo"))
    .map(({ value }) => ErrorInfo.deserialize(value));
}

/** A connection to one coordinator. */
export class Client {
  /** @param {string} address HOST:PORT. */
  constructor(address) {
    this.stub = new GenerationService(address, grpc.credentials.createInsecure());
  }

  /**
   * Streams one completion: `{accepted}`, then any number of `{tokens}`, then one `{finished}`.
   *
   * Leaving the loop, or aborting the signal, cancels the request, which frees its memory on every
   * stage.
   *
   * @param {object} request A `GenerateRequest`.
   * @param {{signal?: AbortSignal, timeoutS?: number}} options The time limit is for the whole
   *   completion.
   * @throws {StagecoachError} The request failed, was cancelled, or took too long.
   */
  async *generate(request, { signal, timeoutS } = {}) {
    const deadline = timeoutS === undefined ? Infinity : Date.now() + timeoutS * 1000;
    const call = this.stub.Generate(request, { deadline });
    // The loop below hears errors while it runs; one that comes after it was left must not be
    // without a listener, which would end the process.
    call.on("error", () => {});
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted) {
      cancel();
    }
    try {
      yield* call;
    } catch (error) {
      throw StagecoachError.of(error);
    } finally {
      signal?.removeEventListener("abort", cancel);
      cancel();
    }
  }

  /** The state of the coordinator and of every stage, as a `GetStatusResponse`. */
  status() {
    return new Promise((resolve, reject) => {
      this.stub.GetStatus({}, (error, response) => {
        if (error) {
          reject(StagecoachError.of(error));
        } else {
          resolve(response);
        }
      });
    });
  }

  /** Closes the connection. */
  close() {
    this.stub.close();
  }
}
