/** The list of conversations that are kept: to open, to delete. */

import { byId, element, setText } from "./dom.js";

const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

export class ConversationList {
  /**
   * @param {import("./conversations.js").Conversations} conversations
   * @param {{onOpen: (id: string) => void, onDelete: (id: string | null) => void}} told Called when
   *   one is chosen, and once one is deleted; null: all are.
   */
  constructor(conversations, { onOpen, onDelete }) {
    this.conversations = conversations;
    this.onOpen = onOpen;
    this.onDelete = onDelete;
    this.openId = null;
    this.node = byId("history");
    this.rows = byId("history-rows");
    this.node.addEventListener("toggle", () => this.show(this.openId));
    byId("delete-all").addEventListener("click", () => {
      if (confirm("Delete all conversations that this browser keeps?")) {
        this.conversations.clear();
        this.onDelete(null);
      }
    });
    setText(byId("history-note"), noteOf(conversations));
  }

  /** @param {string} openId Which of them is on the page. */
  show(openId) {
    this.openId = openId;
    const entries = this.conversations.entries();
    this.node.hidden = entries.length === 0;
    setText(byId("history-count"), String(entries.length));
    if (this.node.open) {
      this.rows.replaceChildren(...entries.map((entry) => this.#row(entry)));
    }
  }

  close() {
    this.node.open = false;
  }

  #row({ id, title, updatedMs }) {
    const open = element(
      "button",
      "open",
      element("span", "title", title),
      element("span", "when", whenOf(updatedMs)),
    );
    open.type = "button";
    open.addEventListener("click", () => this.onOpen(id));
    const remove = element("button", "quiet", "Delete");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete ${title}`);
    remove.addEventListener("click", () => this.#remove(id, title));
    if (id === this.openId) {
      open.setAttribute("aria-current", "true");
    }
    return element("li", "", open, remove);
  }

  #remove(id, title) {
    if (!confirm(`Delete the conversation "${title}"?`)) {
      return;
    }
    this.conversations.remove(id);
    this.onDelete(id);
    // The focus was on what is gone.
    (this.rows.querySelector("button") ?? byId("prompt")).focus();
  }
}

function noteOf(conversations) {
  return conversations.store.isThere
    ? "Kept in this browser alone."
    : "This browser keeps nothing for this page: conversations are gone when it is closed.";
}

/** The time of today, or the day. */
function whenOf(updatedMs) {
  const isToday = new Date(updatedMs).toDateString() === new Date().toDateString();
  return (isToday ? TIME : DAY).format(updatedMs);
}
