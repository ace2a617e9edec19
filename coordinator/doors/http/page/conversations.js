/**
 * The conversations that this browser keeps: the latest, within bounds.
 *
 * Each is a text of its own in the store, so that tabs do not overwrite each other's: a line of
 * what a list shows, and behind it the exchanges.
 */

import { isExchange } from "./exchange.js";

const MAX_CONVERSATIONS = 100;
const MAX_CHARS = 2_000_000; // of all together; browsers keep about five million
const MAX_TITLE_CHARS = 80;
const PREFIX = "conversation 1 "; // the number of this form of it

/**
 * @typedef {{id: string, exchanges: import("./exchange.js").Exchange[]}} Conversation
 * @typedef {{id: string, title: string, updatedMs: number, numChars: number}} Entry
 */

/** A conversation in which nothing was said. */
export function newConversation() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: [Date.now(), ...random].map((part) => part.toString(36)).join("-"), exchanges: [] };
}

export class Conversations {
  /** @param {import("./storage.js").Store} store */
  constructor(store) {
    this.store = store;
  }

  /** @returns {Entry[]} The latest first. */
  entries() {
    const names = this.store.names().filter((name) => name.startsWith(PREFIX));
    return names.map((name) => this.#entry(name)).sort((a, b) => b.updatedMs - a.updatedMs);
  }

  /** @returns {Conversation | null} Null if it is not there, or cannot be read. */
  load(id) {
    const text = this.store.get(PREFIX + id);
    const exchanges = parsed(text?.slice(text.indexOf("\n") + 1));
    return Array.isArray(exchanges) && exchanges.every(isExchange) ? { id, exchanges } : null;
  }

  /**
   * Keeps a conversation; the oldest others make room.
   *
   * @param {Conversation} conversation
   * @returns {boolean} Whether the browser has it.
   */
  save({ id, exchanges }) {
    const title = exchanges[0].question.slice(0, 4 * MAX_TITLE_CHARS).replace(/\s+/g, " ").trim();
    const head = { title: title.slice(0, MAX_TITLE_CHARS), updatedMs: Date.now() };
    const text = `${JSON.stringify(head)}\n${JSON.stringify(exchanges)}`;
    const others = this.entries().filter((entry) => entry.id !== id);
    let numChars = others.reduce((sum, entry) => sum + entry.numChars, text.length);
    const drop = () => {
      const oldest = others.pop();
      numChars -= oldest.numChars;
      this.remove(oldest.id);
    };
    if (text.length > MAX_CHARS) {
      this.store.hold(PREFIX + id, text);
      return false;
    }
    while (others.length >= MAX_CONVERSATIONS || numChars > MAX_CHARS) {
      drop();
    }
    for (;;) {
      if (this.store.set(PREFIX + id, text)) {
        return true;
      }
      if (others.length === 0 || !this.store.isThere) {
        return false;
      }
      drop();
    }
  }

  remove(id) {
    this.store.remove(PREFIX + id);
  }

  clear() {
    this.entries().forEach(({ id }) => this.remove(id));
  }

  /** @param {(id: string | null) => void} onChange Told of what other tabs change; null: of all. */
  watch(onChange) {
    this.store.watch((name) => {
      if (name === null || name.startsWith(PREFIX)) {
        onChange(name?.slice(PREFIX.length) ?? null);
      }
    });
  }

  /** What cannot be read is the oldest, so that it goes first. */
  #entry(name) {
    const text = this.store.get(name) ?? "";
    const head = parsed(text.slice(0, Math.max(0, text.indexOf("\n"))));
    return {
      id: name.slice(PREFIX.length),
      title: String(head?.title ?? "?"),
      updatedMs: Number(head?.updatedMs ?? 0),
      numChars: text.length,
    };
  }
}

function parsed(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
