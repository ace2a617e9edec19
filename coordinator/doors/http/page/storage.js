/** What the browser keeps for this page, or the page itself where the browser keeps nothing. */

/** Where the coordinator is: its paths are below this, also behind a proxy that strips a prefix. */
export const ROOT = new URL("../", import.meta.url);

// One origin may have several coordinators, each under a path of its own.
const PREFIX = `stagecoach ${ROOT.pathname} `;

/** Texts by name. What cannot be written is held for as long as the page is open. */
export class Store {
  /** @param {"localStorage" | "sessionStorage"} kind */
  constructor(kind) {
    this.area = areaOf(kind);
    this.held = new Map();
  }

  /** False where the browser keeps nothing for this page. */
  get isThere() {
    return this.area !== null;
  }

  /** @returns {string | null} */
  get(name) {
    return this.held.get(name) ?? this.area?.getItem(PREFIX + name) ?? null;
  }

  /** @returns {boolean} Whether the browser has it now; if not, what it had before stays. */
  set(name, text) {
    if (this.area !== null) {
      try {
        this.area.setItem(PREFIX + name, text);
        this.held.delete(name);
        return true;
      } catch (error) {
        if (!(error instanceof DOMException)) {
          throw error;
        }
      }
    }
    this.hold(name, text); // no storage, or a full one
    return false;
  }

  /** Holds a text for as long as the page is open; what the browser had before stays. */
  hold(name, text) {
    this.held.set(name, text);
  }

  remove(name) {
    this.held.delete(name);
    this.area?.removeItem(PREFIX + name);
  }

  /** @returns {string[]} In no order. */
  names() {
    const written = this.area === null ? [] : Object.keys(this.area);
    const ours = written.filter((key) => key.startsWith(PREFIX));
    return [...new Set([...ours.map((key) => key.slice(PREFIX.length)), ...this.held.keys()])];
  }

  /**
   * Tells of what other tabs change.
   *
   * @param {(name: string | null) => void} onChange Its name; null: all is gone.
   */
  watch(onChange) {
    addEventListener("storage", ({ key, storageArea }) => {
      if (storageArea !== this.area || (key !== null && !key.startsWith(PREFIX))) {
        return;
      }
      onChange(key === null ? null : key.slice(PREFIX.length));
    });
  }
}

function areaOf(kind) {
  try {
    return window[kind];
  } catch {
    return null; // the browser was told to keep nothing
  }
}
