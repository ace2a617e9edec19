/**
 * Streams one completion to stdout:
 *
 *     npm install
 *     node complete.mjs "Once upon a time" --max-tokens 40
 *     node complete.mjs --chat "What is the capital of France?"
 *
 * Ctrl-C cancels it. Exits with 0 when it is complete, 1 when it failed, 2 on bad usage and 130
 * when it was cancelled.
 */

import { parseArgs } from "node:util";

import { Client, StagecoachError } from "./client.mjs";

const DEFAULT_ADDRESS = process.env.STAGECOACH_COORDINATOR ?? "localhost:50050";

const USAGE =
  "usage: node complete.mjs PROMPT [--chat] [--max-tokens N] [--temperature T] [--seed N]\n" +
  "           [--timeout-s S] [--coordinator HOST:PORT]";

function parseCommand() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      chat: { type: "boolean", default: false },
      coordinator: { type: "string", default: DEFAULT_ADDRESS },
      "max-tokens": { type: "string", default: "64" },
      temperature: { type: "string", default: "0" },
      seed: { type: "string" },
      "timeout-s": { type: "string" },
    },
  });
  if (positionals.length !== 1) {
    throw new TypeError(`one prompt is needed, not ${positionals.length}`);
  }
  const [text] = positionals;
  return {
    address: values.coordinator,
    timeoutS: number("timeout-s", values),
    request: {
      prompt: values.chat ? { chat: { messages: [{ role: "user", content: text }] } } : { text },
      max_tokens: number("max-tokens", values),
      sampling: { temperature: number("temperature", values), seed: number("seed", values) },
    },
  };
}

function number(name, values) {
  if (values[name] === undefined) {
    return undefined;
  }
  const value = Number(values[name]);
  if (!(value >= 0)) {
    throw new TypeError(`--${name} is ${JSON.stringify(values[name])}, must be a number from 0`);
  }
  return value;
}

/** Writes the text as it comes; returns the `Finished` event. */
async function stream(client, { request, timeoutS }, signal) {
  let last;
  for await (const { tokens, finished } of client.generate(request, { signal, timeoutS })) {
    process.stdout.write((tokens ?? finished)?.text ?? "");
    last = finished;
  }
  return last;
}

async function main() {
  let command;
  try {
    command = parseCommand();
  } catch (error) {
    console.error(`${error.message}\n${USAGE}`);
    return 2;
  }
  const abort = new AbortController();
  process.once("SIGINT", () => abort.abort());
  const client = new Client(command.address);
  try {
    const finished = await stream(client, command, abort.signal);
    process.stdout.write("\n");
    const { num_prompt_tokens: prompt, num_completion_tokens: output } = finished;
    console.error(`${finished.finish_reason}: ${prompt} prompt tokens, ${output} generated`);
    return 0;
  } catch (error) {
    if (!(error instanceof StagecoachError)) {
      throw error;
    }
    if (abort.signal.aborted) {
      console.error("\ncancelled");
      return 130;
    }
    console.error(`error: ${error.message} (${error.reason ?? error.code})`);
    return 1;
  } finally {
    client.close();
  }
}

process.exitCode = await main();
