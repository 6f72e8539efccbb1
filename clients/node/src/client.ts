/** A client of narrows.v1.RetrievalService: promises, deadlines, typed errors, streams. */
import { Readable, type Writable } from "node:stream";
import { fileURLToPath } from "node:url";

import { credentials, loadPackageDefinition, type CallOptions, type requestCallback, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import type { EncodeRequest } from "../gen/narrows/v1/EncodeRequest.js";
import type { EncodeResponse__Output } from "../gen/narrows/v1/EncodeResponse.js";
import type { GetServerInfoResponse__Output } from "../gen/narrows/v1/GetServerInfoResponse.js";
import type { RetrievalServiceClient } from "../gen/narrows/v1/RetrievalService.js";
import type { SearchRequest } from "../gen/narrows/v1/SearchRequest.js";
import type { SearchResponse__Output } from "../gen/narrows/v1/SearchResponse.js";
import type { SearchStreamRequest } from "../gen/narrows/v1/SearchStreamRequest.js";
import type { SearchStreamResponse__Output } from "../gen/narrows/v1/SearchStreamResponse.js";
import type { ProtoGrpcType } from "../gen/retrieval.js";
import { NarrowsError } from "./errors.js";

const PROTO = fileURLToPath(new URL("../../../../proto/narrows/v1/retrieval.proto", import.meta.url));
// These options and those of `npm run gen` in package.json must agree, or the types lie.
const LOADER_OPTIONS = { enums: String, defaults: true, oneofs: true } as const;

// gRPC retries by itself what this names. UNAVAILABLE: the server is not there (yet), or is shutting down.
// RESOURCE_EXHAUSTED: overload; the server says when to come back (grpc-retry-pushback-ms) and gRPC waits that long.
const SERVICE_CONFIG = {
  loadBalancingConfig: [],
  methodConfig: [
    {
      name: [{ service: "narrows.v1.RetrievalService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
};

export interface ClientOptions {
  /** The deadline of a unary call, in milliseconds. */
  timeoutMs?: number;
  /** Whether gRPC tries again by itself, within the deadline. */
  retry?: boolean;
  /** The largest reply taken. gRPC's own default is 4 MiB, and an operator may let the server send more. */
  maxReplyBytes?: number;
}

/** A connection to one server, made on first use. Every method rejects with a NarrowsError. */
export class NarrowsClient {
  private readonly stub: RetrievalServiceClient;
  private readonly timeoutMs: number;

  constructor(address: string, options: ClientOptions = {}) {
    const contract = loadPackageDefinition(loadSync(PROTO, LOADER_OPTIONS)) as unknown as ProtoGrpcType;
    this.timeoutMs = options.timeoutMs ?? 10_000;
    this.stub = new contract.narrows.v1.RetrievalService(address, credentials.createInsecure(), {
      "grpc.max_receive_message_length": options.maxReplyBytes ?? 64 * 2 ** 20,
      "grpc.enable_retries": (options.retry ?? true) ? 1 : 0,
      "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    });
  }

  close(): void {
    this.stub.close();
  }

  serverInfo(): Promise<GetServerInfoResponse__Output> {
    return this.call((options, done) => this.stub.getServerInfo({}, options, done));
  }

  search(request: SearchRequest, timeoutMs = this.timeoutMs): Promise<SearchResponse__Output> {
    return this.call((options, done) => this.stub.search(request, options, done), timeoutMs);
  }

  encode(request: EncodeRequest, timeoutMs = this.timeoutMs): Promise<EncodeResponse__Output> {
    return this.call((options, done) => this.stub.encode(request, options, done), timeoutMs);
  }

  /**
   * Sends requests as fast as the server takes them, half-closes, and yields the answers in the order in which they
   * are ready: match them by requestId. A request's failure is its answer (`error`); only a failure of the whole
   * stream is thrown. No deadline of its own: a gRPC deadline would cover the whole stream, so requests carry
   * timeoutMs. Leaving the loop early cancels the call.
   */
  async *searchStream(
    requests: Iterable<SearchStreamRequest> | AsyncIterable<SearchStreamRequest>,
  ): AsyncGenerator<SearchStreamResponse__Output> {
    const call = this.stub.searchStream();
    const source = Readable.from(requests);
    let failure: Error | undefined; // of the requests' own iterator
    source.on("error", (error) => {
      failure = error;
      call.cancel();
    });
    call.on("error", () => source.destroy()); // the loop below throws it
    source.pipe(call as unknown as Writable); // honours HTTP/2 flow control, and half-closes at the end
    try {
      for await (const response of call) yield response as SearchStreamResponse__Output;
    } catch (error) {
      throw failure ?? NarrowsError.ofCall(error as ServiceError);
    } finally {
      source.destroy();
      call.cancel();
    }
  }

  private call<Reply>(
    start: (options: CallOptions, done: requestCallback<Reply>) => void,
    timeoutMs = this.timeoutMs,
  ): Promise<Reply> {
    return new Promise((resolve, reject) => {
      start({ deadline: Date.now() + timeoutMs }, (error, reply) => {
        if (error) reject(NarrowsError.ofCall(error));
        else resolve(reply as Reply); // gRPC gives one of the two
      });
    });
  }
}
