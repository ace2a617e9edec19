/** Asks the coordinator for an answer: to a conversation, or to what its model takes instead. */

import { ApiError, events, request } from "./api.js";
import { messagesOf, toldOf } from "./exchange.js";
import { Growing } from "./growing.js";

const TOO_LONG = "context_length_exceeded";

/** What a model can be asked: a conversation, a text to continue, or token ids to continue. */
export const NOTES = {
  chat: null,
  text:
    "This model has no chat template, so each message is continued as plain text, without what " +
    "was said before.",
  tokens:
    "This model has no tokenizer: a message is token ids, such as 1 15043 3186, and so is the " +
    "answer.",
};

/**
 * Streams the answer to the last of these exchanges into it.
 *
 * Where a conversation is too long for the model, its oldest exchanges are left out.
 *
 * @param {import("./exchange.js").Exchange[]} exchanges
 * @param {object} asked
 * @param {"chat" | "text" | "tokens"} asked.mode
 * @param {object} asked.options Further fields of the request.
 * @param {AbortSignal} asked.signal
 * @param {(mode: "text") => void} asked.onMode Called when the model takes no conversation.
 * @param {() => void} asked.onMore Called when there is more of the answer.
 * @throws {ApiError} It was refused, or failed, or its stream ended early.
 */
export async function complete(exchanges, { mode, options, signal, onMode, onMore }) {
  const { answer } = exchanges.at(-1);
  answer.model = options.model;
  answer.maxTokens = options.max_tokens;
  const growing = new Growing(answer);
  try {
    const response = await open(exchanges, { mode, options, signal, onMode });
    for await (const chunk of events(response)) {
      if (chunk.error) {
        throw new ApiError(200, chunk.error);
      }
      if (growing.take(chunk)) {
        onMore();
      }
    }
  } catch (error) {
    if (error instanceof TypeError && !signal.aborted) {
      // What a browser makes of a connection that fails, each in words of its own.
      throw new ApiError(0, { message: "the coordinator cannot be reached, or was lost" });
    }
    throw error;
  }
  if (answer.reason === null) {
    throw new ApiError(200, { message: "the answer ended early: its connection was closed" });
  }
}

/** Sends the request as often as there is a reason to send it in another form. */
async function open(exchanges, { mode, options, signal, onMode }) {
  const { answer } = exchanges.at(-1);
  const whole = toldOf(exchanges);
  for (let told = whole; ; ) {
    try {
      return await request(...form(told, mode, options), signal);
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      if (mode === "chat" && error.message.includes("no chat template")) {
        mode = "text";
        onMode(mode);
      } else if (mode === "chat" && error.code === TOO_LONG && told.length > 1) {
        told = told.slice(Math.ceil((told.length - 1) / 4));
        answer.numLeftOut = whole.length - told.length;
      } else {
        throw error;
      }
    }
  }
}

/** Path and body of a request. */
function form(exchanges, mode, options) {
  if (mode === "chat") {
    return ["v1/chat/completions", { ...options, messages: messagesOf(exchanges) }];
  }
  const text = exchanges.at(-1).question;
  return ["v1/completions", { ...options, prompt: mode === "tokens" ? tokenIds(text) : text }];
}

function tokenIds(text) {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  if (!words.every((word) => /^\d+$/.test(word))) {
    throw new ApiError(400, { message: "the model has no tokenizer: write token ids, as numbers" });
  }
  return words.map(Number);
}
