#!/usr/bin/env node
/** The command line: search, stream, encode, check. */
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

import type { HitList__Output } from "../gen/narrows/v1/HitList.js";
import type { SearchStreamRequest } from "../gen/narrows/v1/SearchStreamRequest.js";
import { described, runChecks } from "./check.js";
import { NarrowsClient } from "./client.js";
import { NarrowsError } from "./errors.js";
import { rowsOf } from "./tensor.js";

const USAGE = `usage: narrows-node COMMAND [OPTION...] [TEXT...]

  search QUESTION...   one call: the best passages of each question
  stream [QUESTION...] one stream: answers in the order in which they are ready (no QUESTION: one a line from stdin)
  encode TEXT...       embeddings, one JSON object a line
  check [QUESTION...]  try everything against a server; one JSON report, exit status 1 if any check failed

  --server HOST:PORT   default: 127.0.0.1:50051
  -k N                 passages for each question (default: 5)
  --corpus NAME        name of the index (default: the only one)
  --timeout S          deadline in seconds of a call, or of each request of a stream (default: 10)
  --json               search, stream: one JSON object a question
  --passages           encode: the texts are passages, TITLE<tab>TEXT or TEXT alone
  --dtype TYPE         encode: float32 or float16 on the wire (default: float32)
  --overload           check: also send more than the queue holds, which delays everyone else

example: narrows-node search "who discovered penicillin?" -k 3`;

class UsageError extends Error {}

interface Options {
  server: string;
  k: number;
  corpus: string;
  timeoutMs: number;
  json: boolean;
  passages: boolean;
  dtype: string;
  overload: boolean;
}

const print = (line: string): boolean => process.stdout.write(`${line}\n`);

function hitsOf(list: HitList__Output): { id: string; title: string; text: string; score: number }[] {
  return list.hits.map(({ passage, score }) => ({ id: passage!.id, title: passage!.title, text: passage!.text, score }));
}

function show(list: HitList__Output): void {
  for (const [i, hit] of hitsOf(list).entries()) {
    print(`${String(i + 1).padStart(3)}. ${hit.score.toFixed(3).padStart(8)}  ${hit.title || hit.id}  [${hit.id}]`);
    print(`      ${hit.text.slice(0, 100)}`);
  }
}

async function search(client: NarrowsClient, questions: string[], options: Options): Promise<void> {
  const reply = await client.search({ questions, k: options.k, corpus: options.corpus });
  reply.results.forEach((list, i) => {
    if (options.json) print(JSON.stringify({ question: questions[i], hits: hitsOf(list) }));
    else {
      print(`\n${questions[i]}`);
      show(list);
    }
  });
}

/** Returns 1 when a request failed; the others are answered all the same. */
async function stream(client: NarrowsClient, given: string[], options: Options): Promise<number> {
  const questions = new Map<string, string>(); // by request id, until they are answered
  const stdin = given.length > 0 ? undefined : createInterface({ input: process.stdin });
  async function* requests(): AsyncGenerator<SearchStreamRequest> {
    let number = 0;
    for await (const question of stdin ?? given) {
      const requestId = String(number++);
      questions.set(requestId, question);
      const search = { questions: [question], k: options.k, corpus: options.corpus };
      yield { requestId, search, timeoutMs: options.timeoutMs };
    }
  }
  let status = 0;
  try {
    for await (const { requestId, outcome, result, error } of client.searchStream(requests())) {
      const question = questions.get(requestId);
      questions.delete(requestId);
      if (outcome === "error") {
        status = 1;
        const failure = NarrowsError.ofItem(error!);
        if (options.json) print(JSON.stringify({ request_id: requestId, question, error: described(failure) }));
        else print(`\n${question}\n      ${failure.codeName}: ${failure.message}`);
      } else {
        const list = result!.results[0]!;
        if (options.json) print(JSON.stringify({ request_id: requestId, question, hits: hitsOf(list) }));
        else {
          print(`\n${question}`);
          show(list);
        }
      }
    }
  } finally {
    stdin?.close(); // or an open stdin would keep this process after a failure
  }
  return status;
}

async function encode(client: NarrowsClient, texts: string[], options: Options): Promise<void> {
  const dtype = options.dtype === "float16" ? "DATA_TYPE_FLOAT16" : "DATA_TYPE_FLOAT32";
  const passages = texts.map((text) => {
    const tab = text.indexOf("\t");
    return { title: text.slice(0, Math.max(tab, 0)), text: text.slice(tab + 1) };
  });
  const reply = await client.encode(options.passages ? { passages, dtype } : { questions: texts, dtype });
  rowsOf(reply.embeddings!).forEach((row, i) => {
    print(JSON.stringify({ text: texts[i], token_count: reply.tokenCounts[i], embedding: [...row] }));
  });
}

function parse(argv: string[]): { command: string; texts: string[]; options: Options } {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      server: { type: "string", default: "127.0.0.1:50051" },
      k: { type: "string", short: "k", default: "5" },
      corpus: { type: "string", default: "" },
      timeout: { type: "string", default: "10" },
      json: { type: "boolean", default: false },
      passages: { type: "boolean", default: false },
      dtype: { type: "string", default: "float32" },
      overload: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return { command: "help", texts: [], options: { ...values, k: 0, timeoutMs: 0 } };
  const [command = "", ...texts] = positionals;
  const k = Number(values.k);
  const timeoutMs = Math.round(Number(values.timeout) * 1000);
  if (!["search", "stream", "encode", "check"].includes(command)) throw new UsageError(`no such command: ${command}`);
  if (["search", "encode"].includes(command) && texts.length === 0) throw new UsageError(`${command} needs a TEXT`);
  if (!Number.isInteger(k) || k < 1) throw new UsageError(`-k must be a whole number from 1, not ${values.k}`);
  if (!(timeoutMs >= 1)) throw new UsageError(`--timeout must be a number of seconds, not ${values.timeout}`);
  if (!["float32", "float16"].includes(values.dtype)) throw new UsageError(`--dtype: float32 or float16`);
  return { command, texts, options: { ...values, k, timeoutMs } };
}

async function run(command: string, texts: string[], options: Options): Promise<number> {
  const { server, k, overload, timeoutMs } = options;
  if (command === "check") {
    const questions = texts.length > 0 ? texts : ["who discovered penicillin?", "which river flows through Vienna?"];
    const report = await runChecks({ server, questions, k, overload });
    print(JSON.stringify(report, null, 1));
    return report.passed ? 0 : 1;
  }
  const client = new NarrowsClient(server, { timeoutMs });
  try {
    if (command === "stream") return await stream(client, texts, options);
    await (command === "search" ? search : encode)(client, texts, options);
    return 0;
  } finally {
    client.close();
  }
}

/** Exit status: 0 done, 1 an expected failure, 2 bad usage. */
async function main(argv: string[]): Promise<number> {
  try {
    const { command, texts, options } = parse(argv);
    if (command === "help") {
      print(USAGE);
      return 0;
    }
    return await run(command, texts, options);
  } catch (error) {
    if (error instanceof NarrowsError) {
      const reason = error.reason === "" ? "" : ` (${error.reason})`;
      process.stderr.write(`narrows-node: ${error.codeName}${reason}: ${error.message}\n`);
      return 1;
    }
    if (error instanceof UsageError || (error as { code?: string }).code?.startsWith("ERR_PARSE_ARGS")) {
      process.stderr.write(`narrows-node: ${(error as Error).message}\n\n${USAGE}\n`);
      return 2;
    }
    throw error;
  }
}

process.exitCode = await main(process.argv.slice(2));
