/** Everything this client relies on, tried against a running server. */
import { performance } from "node:perf_hooks";

import type { HitList__Output } from "../gen/narrows/v1/HitList.js";
import type { SearchRequest } from "../gen/narrows/v1/SearchRequest.js";
import type { SearchStreamRequest } from "../gen/narrows/v1/SearchStreamRequest.js";
import { NarrowsClient } from "./client.js";
import { NarrowsError } from "./errors.js";
import { innerProduct, rowsOf } from "./tensor.js";

// Scores may differ in their last digits where the index was filled on another machine.
const TOLERANCE = 1e-4;

export interface Check {
  name: string;
  passed: boolean;
  /** Why it failed; empty where it passed. */
  message: string;
  /** What the server answered. */
  seen: unknown;
}

export interface Report {
  client: "node";
  server: string;
  passed: boolean;
  checks: Check[];
}

export interface CheckOptions {
  server: string;
  questions: string[];
  k: number;
  /** Also overload the server, which delays everyone who uses it. */
  overload: boolean;
}

/** Runs every check, whatever fails, and reports; only the first one where no server answers. */
export async function runChecks(options: CheckOptions): Promise<Report> {
  const { server, questions, k } = options;
  const client = new NarrowsClient(server);
  const checks: Check[] = [];
  const check = async (name: string, run: () => Promise<unknown>): Promise<void> => {
    try {
      checks.push({ name, passed: true, message: "", seen: await run() });
    } catch (error) {
      checks.push({ name, passed: false, message: String(error), seen: null });
    }
  };
  try {
    await check("server_info", () => serverInfo(client));
    if (!checks[0]!.passed) return { client: "node", server, passed: false, checks };
    await check("search", () => search(client, questions, k));
    await check("search_stream", () => searchStream(client, questions, k));
    await check("inner_product", () => scoreIsInnerProduct(client, questions[0]!));
    await check("float16", () => halfPrecision(client, questions));
    await check("deadline", () => deadline(client, questions));
    await check("errors", () => errors(client, questions[0]!));
    await check("receive_limit", () => receiveLimit(server, questions[0]!));
    if (options.overload) await check("overload", () => overload(server, client, questions[0]!));
  } finally {
    client.close();
  }
  return { client: "node", server, passed: checks.every((each) => each.passed), checks };
}

function expect(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Error(otherwise);
}

/** The error that a call must end with. */
async function failureOf(call: Promise<unknown>, codeName: string): Promise<NarrowsError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof NarrowsError && error.codeName === codeName) return error;
    throw error;
  }
  throw new Error(`expected ${codeName}, and the call succeeded`);
}

/** An error as the reports hold it. */
export function described(error: NarrowsError): object {
  return {
    code: error.codeName,
    reason: error.reason,
    field: error.field,
    message: error.message,
    retry_after_ms: error.retryAfterMs ?? null,
  };
}

function scored(list: HitList__Output): { id: string; score: number }[] {
  return list.hits.map((hit) => ({ id: hit.passage!.id, score: hit.score }));
}

async function serverInfo(client: NarrowsClient): Promise<object> {
  const info = await client.serverInfo();
  expect(info.dim > 0, "the server states no dimensions");
  expect(info.limits !== null && info.served !== null, "the server states no limits");
  return { bundle: info.served.bundle, dim: info.dim, passage_count: info.passageCount, max_k: info.limits.maxK };
}

async function search(client: NarrowsClient, questions: string[], k: number): Promise<object> {
  const reply = await client.search({ questions, k, view: "PASSAGE_VIEW_ID" });
  expect(reply.results.length === questions.length, `${questions.length} questions, ${reply.results.length} results`);
  for (const { hits } of reply.results) {
    expect(hits.length > 0 && hits.length <= k, `${hits.length} hits for k ${k}`);
    expect(hits.every((hit, i) => i === 0 || hits[i - 1]!.score >= hit.score), "hits out of order");
  }
  return { results: reply.results.map(scored) };
}

/** A stream of good requests with a bad one among them: each is answered once, as a unary call would. */
async function searchStream(client: NarrowsClient, questions: string[], k: number): Promise<object> {
  const ask = (question: string): SearchRequest => ({ questions: [question], k, view: "PASSAGE_VIEW_ID" });
  const requests: SearchStreamRequest[] = questions.map((question, i) => ({ requestId: `q${i}`, search: ask(question) }));
  requests.splice(Math.floor(requests.length / 2), 0, { requestId: "bad", search: ask("  ") });
  const answers = new Map<string, ReturnType<typeof scored>>();
  const failures = new Map<string, NarrowsError>();
  const order: string[] = [];
  for await (const { requestId, outcome, result, error } of client.searchStream(requests)) {
    expect(!order.includes(requestId), `${requestId} was answered twice`);
    order.push(requestId);
    if (outcome === "result") answers.set(requestId, scored(result!.results[0]!));
    else failures.set(requestId, NarrowsError.ofItem(error!));
  }
  const missing = requests.filter(({ requestId }) => !order.includes(requestId!));
  expect(missing.length === 0, `not answered: ${missing.map(({ requestId }) => requestId).join(", ")}`);
  const bad = failures.get("bad");
  expect(bad?.codeName === "INVALID_ARGUMENT" && failures.size === 1, `errors of ${[...failures.keys()].join(", ")}`);
  const unary = await client.search({ questions, k, view: "PASSAGE_VIEW_ID" });
  const results = questions.map((_, i) => answers.get(`q${i}`));
  expect(
    JSON.stringify(results) === JSON.stringify(unary.results.map(scored)),
    "the stream's answers are not those of a unary call",
  );
  return { sent: requests.length, order, results, bad: described(bad) };
}

/** A hit's score is the inner product of the two embeddings. */
async function scoreIsInnerProduct(client: NarrowsClient, question: string): Promise<object> {
  const hit = (await client.search({ questions: [question], k: 1 })).results[0]!.hits[0]!;
  const { embeddings } = await client.encode({ questions: [question], passages: [hit.passage!] });
  const [q, p] = rowsOf(embeddings!) as [Float32Array, Float32Array];
  const product = innerProduct(q, p);
  const difference = Math.abs(product - hit.score);
  expect(difference <= TOLERANCE * Math.max(1, Math.abs(hit.score)), `inner product ${product}, score ${hit.score}`);
  return { id: hit.passage!.id, score: hit.score, inner_product: product };
}

/** Half-precision embeddings are the float32 ones, rounded. */
async function halfPrecision(client: NarrowsClient, questions: string[]): Promise<object> {
  const full = rowsOf((await client.encode({ questions })).embeddings!);
  const half = rowsOf((await client.encode({ questions, dtype: "DATA_TYPE_FLOAT16" })).embeddings!);
  expect(half.length === questions.length && half[0]!.length === full[0]!.length, "another shape than in float32");
  let largest = 0;
  full.forEach((row, i) =>
    row.forEach((value, column) => {
      const difference = Math.abs(value - half[i]![column]!);
      expect(difference <= Math.abs(value) * 2 ** -11 + 2 ** -25, `row ${i} column ${column}: off by ${difference}`);
      largest = Math.max(largest, difference);
    }),
  );
  return { rows: half.length, dim: half[0]!.length, largest_difference: largest };
}

/** A deadline that nobody can keep ends the call soon, and the next call is answered. */
async function deadline(client: NarrowsClient, questions: string[]): Promise<object> {
  const startedMs = performance.now();
  const error = await failureOf(client.search({ questions }, 1), "DEADLINE_EXCEEDED");
  const waitedMs = performance.now() - startedMs;
  expect(waitedMs < 2000, `a deadline of 1 ms took ${waitedMs} ms`);
  await client.search({ questions, k: 1 });
  return described(error);
}

/** Each kind of refusal, with the reason and the field in the trailing metadata. */
async function errors(client: NarrowsClient, question: string): Promise<object> {
  const invalid = await failureOf(client.search({ questions: [question, " "] }), "INVALID_ARGUMENT");
  const unknown = await failureOf(client.search({ questions: [question], corpus: "no such corpus" }), "NOT_FOUND");
  const other = { questions: [question], expectedBundle: "no such bundle" };
  const mismatch = await failureOf(client.search(other), "FAILED_PRECONDITION");
  expect(invalid.reason === "INVALID_FIELD" && invalid.field === "questions[1]", `reason and field: ${invalid.field}`);
  expect(unknown.reason === "UNKNOWN_CORPUS", `reason ${unknown.reason}`);
  expect(mismatch.reason === "OTHER_BUNDLE", `reason ${mismatch.reason}`);
  return { invalid: described(invalid), unknown: described(unknown), mismatch: described(mismatch) };
}

/** A reply over the client's own limit is RESOURCE_EXHAUSTED too, but without a reason: no overload. */
async function receiveLimit(server: string, question: string): Promise<object> {
  const small = new NarrowsClient(server, { maxReplyBytes: 64 });
  try {
    const error = await failureOf(small.search({ questions: [question] }), "RESOURCE_EXHAUSTED");
    expect(error.reason === "" && error.retryAfterMs === undefined, `reason ${error.reason}`);
    return described(error);
  } finally {
    small.close();
  }
}

/** More calls at once than the queue holds: some are refused and told when to come back; with retry, fewer are. */
async function overload(server: string, client: NarrowsClient, question: string): Promise<object> {
  const limits = (await client.serverInfo()).limits!;
  const items = Math.min(limits.maxItems, 64);
  const calls = Math.min(Math.max(8 * Math.ceil(limits.maxQueuedQuestions / items), 64), 1024);
  const long = `${question} `.repeat(Math.max(1, Math.floor(1000 / question.length)));
  const request: SearchRequest = { questions: Array<string>(items).fill(long), k: 1, view: "PASSAGE_VIEW_ID" };
  const burst = async (retry: boolean): Promise<NarrowsError[]> => {
    const fresh = new NarrowsClient(server, { retry, timeoutMs: 30_000 });
    try {
      const ended = await Promise.allSettled(Array.from({ length: calls }, () => fresh.search(request)));
      return ended.flatMap((end) => (end.status === "rejected" ? [end.reason as NarrowsError] : []));
    } finally {
      fresh.close();
    }
  };
  const refused = await burst(false);
  expect(refused.length > 0, `${calls} calls at once, and none was refused`);
  for (const error of refused) {
    expect(error.reason === "OVERLOADED" && (error.retryAfterMs ?? 0) >= 1, `${error.codeName}: ${error.message}`);
  }
  const refusedWithRetry = await burst(true);
  return { calls, refused: refused.length, refused_with_retry: refusedWithRetry.length, first: described(refused[0]!) };
}
