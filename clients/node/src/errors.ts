/** What went wrong with a request: the gRPC status, and what the server added to it. */
import { status, type ServiceError } from "@grpc/grpc-js";

import type { ItemError__Output } from "../gen/narrows/v1/ItemError.js";

/** A failed call, or one failed request of a stream. */
export class NarrowsError extends Error {
  override readonly name = "NarrowsError";

  constructor(
    /** The gRPC status code, as a number and by name. */
    readonly code: number,
    message: string,
    /** A constant such as OVERLOADED; empty where the failure is not the server's own (no connection, a deadline kept here). */
    readonly reason = "",
    /** The request field at fault, such as questions[3]; empty where none is. */
    readonly field = "",
    /** When to try again, in milliseconds; undefined where the server did not say. */
    readonly retryAfterMs: number | undefined = undefined,
  ) {
    super(message);
  }

  get codeName(): string {
    return status[this.code] ?? String(this.code);
  }

  /** Reads the trailing metadata of a failed call. */
  static ofCall(error: ServiceError): NarrowsError {
    const trailer = (key: string): string => error.metadata?.get(key)[0]?.toString() ?? "";
    const pushback = trailer("grpc-retry-pushback-ms");
    return new NarrowsError(
      error.code,
      error.details,
      trailer("narrows-reason"),
      trailer("narrows-field"),
      pushback === "" ? undefined : Number(pushback),
    );
  }

  /** The same from the answer to one request of a stream. */
  static ofItem(error: ItemError__Output): NarrowsError {
    const retryAfterMs = error.reason === "OVERLOADED" ? error.retryAfterMs : undefined;
    return new NarrowsError(error.code, error.message, error.reason, error.field, retryAfterMs);
  }
}
