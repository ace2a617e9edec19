/** The playground: a conversation with the model. */

import { ApiError, events, request } from "./api.js";
import { byId, element, setText } from "./dom.js";

const FENCE_LINES = /^```[^\n]*(?:\n|$)/m;

/** What the model can be asked: a chat, a text to continue, or token ids to continue. */
const NOTES = {
  chat: null,
  text:
    "This model has no chat template, so each message is continued as plain text, without what " +
    "was said before.",
  tokens:
    "This model has no tokenizer: a message is token ids, such as 1 15043 3186, and so is the " +
    "answer.",
};

export class Chat {
  constructor() {
    this.messages = [];
    this.mode = "chat";
    this.model = undefined; // until the coordinator has said its name
    this.abort = null;
    this.log = byId("log");
    this.empty = this.log.firstElementChild;
    this.prompt = byId("prompt");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        byId("composer").requestSubmit();
      }
    });
    byId("stop").addEventListener("click", () => this.abort?.abort());
    byId("new-chat").addEventListener("click", () => this.#clear());
  }

  /** Takes in what the coordinator says of its model. */
  know({ names, has_tokenizer: hasTokenizer, max_model_len: maxModelLen }) {
    if (names[0] !== this.model) {
      [this.model] = names;
      this.#setMode("chat");
    }
    if (maxModelLen > 0) {
      byId("max-tokens").max = maxModelLen;
      if (!hasTokenizer) {
        this.#setMode("tokens");
      }
    }
  }

  #setMode(mode) {
    this.mode = mode;
    byId("chat-note").hidden = NOTES[mode] === null;
    setText(byId("chat-note"), NOTES[mode] ?? "");
  }

  #clear() {
    this.abort?.abort();
    this.messages = [];
    this.log.replaceChildren(this.empty);
    this.prompt.focus();
  }

  async #send() {
    const text = this.prompt.value.trim();
    if (text === "" || this.abort !== null) {
      return;
    }
    this.prompt.value = "";
    this.empty.remove();
    this.messages.push({ role: "user", content: text });
    this.log.append(element("div", "message user", element("div", "text", text)));
    const answer = new Answer(this.log);
    this.abort = new AbortController();
    this.#setBusy(true);
    const { messages } = this;
    try {
      await this.#stream(answer, this.abort.signal);
      answer.end();
    } catch (error) {
      answer.fail(error, this.abort.signal.aborted);
    }
    if (answer.text !== "") {
      messages.push({ role: "assistant", content: answer.text });
    } else {
      messages.pop(); // so that roles go on taking turns
    }
    this.abort = null;
    this.#setBusy(false);
  }

  async #stream(answer, signal) {
    let response;
    try {
      response = await this.#request(signal);
    } catch (error) {
      if (!(error instanceof ApiError && error.message.includes("no chat template"))) {
        throw error;
      }
      this.#setMode("text");
      response = await this.#request(signal);
    }
    for await (const chunk of events(response)) {
      if (chunk.error) {
        throw new ApiError(200, chunk.error);
      }
      answer.take(chunk);
    }
    if (answer.reason === null) {
      throw new ApiError(200, { message: "the answer ended early: its connection was closed" });
    }
  }

  #request(signal) {
    const options = {
      model: this.model,
      stream: true,
      stream_options: { include_usage: true },
      temperature: byId("temperature").valueAsNumber || 0,
      max_tokens: byId("max-tokens").valueAsNumber || 256,
    };
    if (this.mode === "chat") {
      return request("/v1/chat/completions", {
        body: { ...options, messages: this.messages },
        signal,
      });
    }
    const text = this.messages.at(-1).content;
    return request("/v1/completions", {
      body: { ...options, prompt: this.mode === "tokens" ? tokenIds(text) : text },
      signal,
    });
  }

  #setBusy(isBusy) {
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    this.log.setAttribute("aria-busy", String(isBusy));
    // On a phone the focus would bring the keyboard up, over the answer.
    if (!isBusy && !matchMedia("(pointer: coarse)").matches) {
      this.prompt.focus();
    }
  }
}

function tokenIds(text) {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  if (!words.every((word) => /^\d+$/.test(word))) {
    throw new ApiError(400, { message: "the model has no tokenizer: write token ids, as numbers" });
  }
  return words.map(Number);
}

/** One answer as it grows, with what it cost below it. */
class Answer {
  constructor(log) {
    this.log = log;
    this.text = "";
    this.usage = null;
    this.reason = null;
    this.startedMs = performance.now();
    this.firstMs = null;
    this.lastMs = null;
    this.body = element("div", "text waiting");
    this.meta = element("p", "meta");
    this.node = element("div", "message assistant", this.body, this.meta);
    this.isDrawing = false;
    log.append(this.node);
    this.#scroll(true);
  }

  /** Takes in one event of the stream, of either kind of completion. */
  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    for (const choice of chunk.choices) {
      this.reason = choice.finish_reason ?? this.reason;
      const ids = choice.token_ids?.length ? `${choice.token_ids.join(" ")} ` : "";
      this.#add((choice.delta?.content ?? choice.text ?? "") || ids);
    }
  }

  #add(text) {
    if (text === "") {
      return;
    }
    this.lastMs = performance.now();
    this.firstMs ??= this.lastMs;
    this.text += text;
    if (!this.isDrawing) {
      this.isDrawing = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #draw() {
    this.isDrawing = false;
    const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    this.body.classList.remove("waiting");
    showText(this.body, this.text);
    this.#scroll(isAtEnd);
  }

  #scroll(isWanted) {
    if (isWanted) {
      this.log.scrollTop = this.log.scrollHeight;
    }
  }

  end() {
    const notes = { length: "stopped at max tokens" };
    this.#close(notes[this.reason]);
  }

  fail(error, wasStopped) {
    if (!wasStopped) {
      this.node.append(element("p", "wrong", `Error: ${error.message}`));
    }
    this.#close(wasStopped ? "stopped" : undefined);
  }

  #close(note) {
    this.#draw();
    const parts = [];
    if (this.firstMs !== null) {
      parts.push(`first token ${((this.firstMs - this.startedMs) / 1000).toFixed(2)} s`);
    }
    const tokens = this.usage?.completion_tokens;
    const spanS = (this.lastMs - this.firstMs) / 1000;
    if (tokens > 1 && spanS > 0) {
      parts.push(`${((tokens - 1) / spanS).toFixed(1)} tokens/s`);
    }
    if (tokens !== undefined) {
      parts.push(`${tokens} tokens`);
    }
    setText(this.meta, [...parts, note].filter(Boolean).join(" · "));
    this.#scroll(true);
  }
}

/** A text without the line feed that ends it. */
function withoutLast(text) {
  return text.replace(/\n$/, "");
}

/** Shows text as it is, and what stands between fences as code. */
function showText(node, text) {
  const pieces = text.split(FENCE_LINES);
  while (node.childNodes.length > pieces.length) {
    node.lastChild.remove();
  }
  pieces.forEach((piece, index) => {
    const isCode = index % 2 === 1;
    if (index >= node.childNodes.length) {
      node.append(isCode ? element("pre", "code") : element("span", ""));
    }
    const isAfterCode = index > 0 && !isCode;
    setText(node.childNodes[index], isAfterCode ? piece.replace(/^\n+/, "") : withoutLast(piece));
  });
}
