/**
 * Talks to the coordinator that served this page, and to nobody else.
 *
 * The API key, when one is needed, is asked for once and kept in the session storage of the tab.
 */

import { byId } from "./dom.js";
import { ROOT, Store } from "./storage.js";

const KEY = "api key";
const KEY_FORM = /^[\x21-\x7e]{1,256}$/; // what a header carries, and a coordinator looks at

const store = new Store("sessionStorage");

/** A request that was refused or failed. */
export class ApiError extends Error {
  /**
   * @param {number} status Of HTTP.
   * @param {{message: string, param?: string | null, code?: string | null}} error
   */
  constructor(status, { message, param = null, code = null }) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

/**
 * Sends a request; asks for an API key when the coordinator wants one.
 *
 * @param {string} path Below the coordinator's root, without a slash before it.
 * @param {object} [body] Makes it a POST.
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>} One that succeeded.
 * @throws {ApiError} One that did not.
 */
export async function request(path, body, signal) {
  for (;;) {
    const key = store.get(KEY);
    if (key !== null && !KEY_FORM.test(key)) {
      await askForKey({ wasRefused: true });
      continue;
    }
    const response = await fetch(new URL(path, ROOT), {
      method: body === undefined ? "GET" : "POST",
      headers: {
        ...(key === null ? {} : { authorization: `Bearer ${key}` }),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal,
    });
    if (response.ok) {
      return response;
    }
    if (response.status !== 401) {
      throw await errorOf(response);
    }
    if (store.get(KEY) === key) {
      await askForKey({ wasRefused: key !== null });
    }
  }
}

async function errorOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    if (error.message) {
      return new ApiError(response.status, error);
    }
  } catch {
    // a proxy's, in another form
  }
  return new ApiError(response.status, { message: `the answer was HTTP ${response.status}` });
}

let asking = null;

/** Asks for a key; those who ask at the same time share one question. */
function askForKey({ wasRefused }) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-wrong").hidden = !wasRefused;
    dialog.addEventListener("cancel", (event) => event.preventDefault(), { once: true });
    dialog.addEventListener(
      "close",
      () => {
        store.set(KEY, byId("key").value.trim());
        byId("key").value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/**
 * The events of a response that is a stream of server-sent events, as parsed JSON.
 *
 * @param {Response} response
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith(":")) {
          continue; // a comment: the server is alive and has nothing to tell
        }
        const data = block.replace(/^data: ?/, "");
        if (data === "[DONE]") {
          return;
        }
        yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel();
  }
}
