/** The playground: a conversation with the model, kept in this browser. */

import { AnswerView } from "./answer_view.js";
import { complete, NOTES } from "./completion.js";
import { ConversationList } from "./conversation_list.js";
import { Conversations, newConversation } from "./conversations.js";
import { byId, element, setText } from "./dom.js";
import { isOver, newExchange, saysSomething } from "./exchange.js";
import { Store } from "./storage.js";

const OPEN = "open conversation";
const KEEP_MS = 1000; // between two times that an answer that grows is kept
const MAX_READ_OUT_CHARS = 600;
const NEAR_END_PX = 40;

export class Chat {
  constructor() {
    this.tab = new Store("sessionStorage");
    this.conversations = new Conversations(new Store("localStorage"));
    this.list = new ConversationList(this.conversations, {
      onOpen: (id) => this.#choose(id),
      onDelete: (id) => this.#onDeleted(id),
    });
    this.mode = "chat";
    this.model = undefined; // until the coordinator has said its name
    this.abort = null; // of the answer that is awaited
    this.isLeaving = false; // the page is about to go
    this.wait = ""; // what an answer waits for
    this.log = byId("log");
    this.empty = this.log.firstElementChild;
    this.prompt = byId("prompt");
    this.#listen();
    this.#show(this.conversations.load(this.tab.get(OPEN) ?? "") ?? newConversation());
  }

  /** Takes in what the coordinator says of its model. */
  know({ names, ready, has_tokenizer: hasTokenizer, max_model_len: maxModelLen }) {
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
    this.wait = ready ? "" : "The model is not ready. The answer goes on once it is.";
    if (this.abort !== null) {
      this.views.at(-1).showWait(this.wait);
    }
  }

  #listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.prompt.value.trim();
      if (text !== "" && this.abort === null) {
        this.prompt.value = "";
        void this.#send(text);
      }
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        byId("composer").requestSubmit();
      }
    });
    byId("stop").addEventListener("click", () => this.abort?.abort());
    byId("new-chat").addEventListener("click", () => {
      this.#show(newConversation());
      this.prompt.focus();
    });
    addEventListener("beforeunload", () => {
      this.isLeaving = true;
    });
    addEventListener("pagehide", () => this.abort !== null && this.#keep());
    this.conversations.watch((id) => this.#onElsewhere(id));
  }

  #setMode(mode) {
    this.mode = mode;
    byId("chat-note").hidden = NOTES[mode] === null;
    setText(byId("chat-note"), NOTES[mode] ?? "");
  }

  /** Puts a conversation on the page; an answer to another one is stopped. */
  #show(conversation) {
    this.abort?.abort();
    this.abort = null;
    this.conversation = conversation;
    this.views = [];
    this.log.replaceChildren(this.empty);
    conversation.exchanges.forEach((exchange) => this.#append(exchange));
    this.views.forEach((view, index) => {
      view.show(conversation.exchanges[index].answer, { isWhole: true });
    });
    this.tab.set(OPEN, conversation.id);
    this.#onChanged();
    this.#setBusy(false);
    this.#scrollToEnd();
  }

  #append({ question }) {
    this.empty.remove();
    const view = new AnswerView(() => this.#retry());
    this.views.push(view);
    this.log.append(
      element(
        "div",
        "message user",
        element("h3", "hidden", "Question"),
        element("div", "text", question),
      ),
      view.node,
    );
  }

  /** Brings in line what depends on which exchanges there are. */
  #onChanged() {
    const { exchanges, id } = this.conversation;
    byId("new-chat").disabled = exchanges.length === 0;
    this.list.show(id);
    this.views.forEach((view, index) => {
      const { answer } = exchanges[index];
      const isFailed = answer.error !== null || !isOver(answer);
      const isLast = index === exchanges.length - 1;
      view.offerRetry(isLast && isFailed && this.abort === null);
    });
  }

  #retry() {
    const { question } = this.conversation.exchanges.pop();
    this.views.pop().node.remove();
    this.log.lastElementChild.remove(); // the question
    void this.#send(question);
  }

  async #send(question) {
    const { conversation } = this;
    const { exchanges } = conversation;
    const exchange = newExchange(question, this.model);
    const { answer } = exchange;
    exchanges.push(exchange);
    this.#append(exchange);
    const view = this.views.at(-1);
    const abort = new AbortController();
    this.abort = abort;
    this.#setBusy(true);
    view.show(answer, { isWhole: false });
    view.showWait(this.wait);
    this.#scrollToEnd();
    this.#keep();
    this.#onChanged();
    announce("Waiting for the answer.");
    try {
      await complete(exchanges, {
        mode: this.mode,
        options: this.#options(),
        signal: abort.signal,
        onMode: (mode) => this.#setMode(mode),
        onMore: this.#drawer(view, answer, abort),
      });
    } catch (error) {
      answer.isStopped = abort.signal.aborted;
      // What the browser cuts because the page goes is unfinished, and no error of anybody.
      answer.error = abort.signal.aborted || this.isLeaving ? null : error.message;
    }
    if (this.abort === abort) {
      const isAtEnd = this.#isAtEnd();
      view.show(answer, { isWhole: true });
      this.abort = null;
      this.#keep();
      this.#setBusy(false);
      this.#onChanged();
      if (isAtEnd) {
        this.#scrollToEnd();
      }
      this.#refocus();
      announce(readOut(answer));
    } else if (conversation.exchanges.length > 0) {
      this.conversations.save(conversation); // another one is on the page by now
      this.#onChanged();
    }
  }

  #options() {
    return {
      model: this.model,
      stream: true,
      stream_options: { include_usage: true },
      temperature: byId("temperature").valueAsNumber || 0,
      max_tokens: byId("max-tokens").valueAsNumber || Number(byId("max-tokens").defaultValue),
    };
  }

  /** Shows an answer as it grows, once a frame at most, and keeps it now and then. */
  #drawer(view, answer, abort) {
    let isAsked = false;
    let keptMs = performance.now();
    return () => {
      if (performance.now() - keptMs > KEEP_MS && this.abort === abort) {
        keptMs = performance.now();
        this.#keep();
      }
      if (isAsked) {
        return;
      }
      isAsked = true;
      requestAnimationFrame(() => {
        isAsked = false;
        if (this.abort === abort) {
          const isAtEnd = this.#isAtEnd();
          view.show(answer, { isWhole: false });
          if (isAtEnd) {
            this.#scrollToEnd();
          }
        }
      });
    };
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #scrollToEnd() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  /** Keeps the conversation, or says that it cannot be kept. */
  #keep() {
    const isKept = this.conversations.save(this.conversation);
    const isNews = !isKept && this.conversations.store.isThere;
    byId("keep-note").hidden = !isNews;
  }

  #choose(id) {
    this.list.close();
    if (id !== this.conversation.id) {
      this.#show(this.conversations.load(id) ?? newConversation());
    }
    this.prompt.focus();
  }

  #onDeleted(id) {
    if (id === null || id === this.conversation.id) {
      this.conversation.exchanges = []; // also of an answer that is still awaited
      this.#show(newConversation());
    }
    this.#onChanged();
  }

  /** Another tab changed a conversation, or deleted it; null: all of them. */
  #onElsewhere(id) {
    const isOurs = id === null || id === this.conversation.id;
    if (isOurs && this.abort !== null) {
      // Both go on with it: that of the other tab stays, and this one becomes one of its own.
      this.conversation.id = newConversation().id;
      this.tab.set(OPEN, this.conversation.id);
      this.#keep();
    } else if (isOurs) {
      const { exchanges } = this.conversation;
      const other = this.conversations.load(this.conversation.id);
      if (other !== null || exchanges.length > 0) {
        this.#show(other ?? newConversation());
      }
    }
    this.#onChanged();
  }

  #setBusy(isBusy) {
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    this.log.setAttribute("aria-busy", String(isBusy));
  }

  /** Puts the focus back if it was on what is hidden now. */
  #refocus() {
    // On a phone it would bring the keyboard up, over the answer.
    const isPhone = matchMedia("(pointer: coarse)").matches;
    if (document.activeElement === document.body && !isPhone) {
      this.prompt.focus();
    }
  }
}

/** Says something to those who cannot see the page. The log itself is silent while it grows. */
function announce(text) {
  setText(byId("announcer"), text);
}

function readOut(answer) {
  if (answer.error !== null) {
    return `Error: ${answer.error}`;
  }
  if (!saysSomething(answer)) {
    return "The answer is empty.";
  }
  const { calls } = answer;
  const content = answer.content.trim();
  const called = calls.map(({ name }) => `Calls ${name}.`).join(" ");
  const numWords = content.split(/\s+/).length;
  const said = content.length > MAX_READ_OUT_CHARS ? `The answer has ${numWords} words.` : content;
  return `${said} ${called}`.trim() || "It only thought.";
}
