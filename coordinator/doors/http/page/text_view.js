/** Shows text as it grows: as it is, never as HTML, and what stands between fences as code. */

import { element } from "./dom.js";

const FENCE = "```";

export class TextView {
  /** @param {string} className Of the element that it fills. */
  constructor(className) {
    this.node = element("div", className);
    this.numTaken = 0;
    this.line = ""; // what came of a line that may become a fence
    this.isLineStart = true;
    this.isCode = false;
    this.block = null; // what grows: text before it is never touched again
    this.end = ""; // the line feed behind it, which shows once there is more of it
  }

  /**
   * Shows a text that begins with all that was shown before.
   *
   * @param {string} text
   * @param {{isWhole: boolean}} options Whether nothing more comes.
   */
  show(text, { isWhole }) {
    const pieces = text.slice(this.numTaken).split(/(?<=\n)/);
    this.numTaken = text.length;
    pieces.filter((piece) => piece !== "").forEach((piece) => this.#take(piece));
    if (isWhole && this.line !== "") {
      this.#endLine();
    }
  }

  /** Takes a line, or a piece of one. */
  #take(piece) {
    if (!this.isLineStart) {
      this.#write(piece);
      this.isLineStart = piece.endsWith("\n");
      return;
    }
    this.line += piece;
    if (this.line.endsWith("\n") || !mayBeFence(this.line)) {
      this.#endLine();
    }
  }

  /** Shows the line that was held back, unless it is a fence. */
  #endLine() {
    const { line } = this;
    this.line = "";
    this.isLineStart = line.endsWith("\n");
    if (line.startsWith(FENCE)) {
      this.isCode = !this.isCode;
      this.block = null;
    } else if (line === "\n" && !this.isCode) {
      this.block = null; // an empty line ends a paragraph
    } else {
      this.#write(line);
    }
  }

  #write(text) {
    if (this.block === null) {
      this.block = document.createTextNode("");
      this.end = "";
      this.node.append(element(this.isCode ? "pre" : "p", this.isCode ? "code" : "", this.block));
    }
    const whole = this.end + text;
    const shown = whole.replace(/\n$/, "");
    this.end = whole.slice(shown.length);
    this.block.appendData(shown);
  }
}

/** A line whose beginning is as that of a fence. */
function mayBeFence(line) {
  return line.startsWith(FENCE) || FENCE.startsWith(line);
}
