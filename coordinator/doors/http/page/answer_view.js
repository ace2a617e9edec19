/** One answer as it is read: thinking and calls folded, text, and what it cost below. */

import { element, setText } from "./dom.js";
import { isOver, isWhole } from "./exchange.js";
import { TextView } from "./text_view.js";

const MAX_SHOWN_ARGUMENTS = 60;

export class AnswerView {
  /** @param {() => void} onRetry Asks the question again. */
  constructor(onRetry) {
    this.thinking = null; // until something was thought
    this.text = new TextView("text");
    this.calls = element("div", "calls");
    this.wrong = element("p", "wrong");
    this.meta = element("p", "meta");
    this.retry = element("button", "quiet", "Try again");
    this.retry.type = "button";
    this.retry.addEventListener("click", onRetry);
    this.callViews = [];
    this.node = element(
      "div",
      "message assistant",
      element("h3", "hidden", "Answer"),
      this.text.node,
      this.calls,
      this.wrong,
      this.meta,
      this.retry,
    );
    this.wrong.hidden = true;
    this.retry.hidden = true;
  }

  /**
   * Shows what there is.
   *
   * @param {import("./exchange.js").Answer} answer With all that was shown before.
   * @param {{isWhole: boolean}} options Whether nothing more comes.
   */
  show(answer, { isWhole: isEnd }) {
    const hasBegunToSpeak = answer.content !== "" || answer.calls.length > 0;
    if (answer.reasoning !== "") {
      if (this.thinking === null) {
        this.thinking = new Thinking();
        this.text.node.before(this.thinking.node);
      }
      this.thinking.show(answer, { isWhole: isEnd || hasBegunToSpeak });
    }
    this.text.show(answer.content, { isWhole: isEnd });
    this.text.node.hidden = answer.content === "" && (isEnd || answer.reasoning !== "");
    this.text.node.classList.toggle("waiting", !isEnd && !hasBegunToSpeak);
    this.#showCalls(answer, isEnd);
    if (isEnd) {
      this.wrong.hidden = answer.error === null;
      setText(this.wrong, answer.error === null ? "" : `Error: ${answer.error}`);
      setText(this.meta, costOf(answer).join(" · "));
    }
  }

  /** Says what an answer waits for, while it does. */
  showWait(text) {
    setText(this.meta, text);
  }

  /** Offers to ask again, or no longer. */
  offerRetry(isOffered) {
    this.retry.hidden = !isOffered;
  }

  #showCalls({ calls }, isEnd) {
    calls.forEach((call, index) => {
      if (this.callViews[index] === undefined) {
        this.callViews[index] = new CallView();
        this.calls.append(this.callViews[index].node);
      }
      this.callViews[index].show(call, isEnd || index < calls.length - 1);
    });
  }
}

/** What was thought before the answer. */
class Thinking {
  constructor() {
    this.title = element("summary", "");
    this.text = new TextView("thought");
    this.node = element("details", "folded thinking", this.title, this.text.node);
  }

  show({ reasoning, thoughtS, numThoughtTokens: numTokens }, { isWhole: isEnd }) {
    this.node.classList.toggle("going", !isEnd);
    this.text.show(reasoning, { isWhole: isEnd });
    if (isEnd) {
      const tokens = numTokens > 0 ? ` · ${numTokens} tokens` : "";
      setText(this.title, `Thought for ${seconds(thoughtS)}${tokens}`);
    } else {
      setText(this.title, `Thinking · ${Math.floor(thoughtS)} s`);
    }
  }
}

/** A call of a tool. */
class CallView {
  constructor() {
    this.verb = element("span", "", "Calls ");
    this.name = element("code", "");
    this.brief = element("code", "brief");
    this.whole = element("pre", "code");
    const title = element("summary", "", this.verb, this.name, this.brief);
    this.node = element("details", "folded call", title, this.whole);
  }

  show(call, isEnd) {
    const text = call.arguments || "{}";
    setText(this.name, call.name);
    if (isEnd && !isWhole(call)) {
      setText(this.verb, "Call that was cut: ");
    }
    const isLong = text.length > MAX_SHOWN_ARGUMENTS;
    setText(this.brief, ` ${text.slice(0, MAX_SHOWN_ARGUMENTS)}${isLong ? "…" : ""}`);
    setText(this.whole, isWhole(call) ? JSON.stringify(JSON.parse(text), null, 2) : text);
  }
}

/** How long it took, how much it was, and why it ended if not by itself. */
function costOf(answer) {
  const { firstS, spanS, numTokens } = answer;
  const parts = [];
  if (firstS !== null) {
    parts.push(`first token ${firstS.toFixed(2)} s`);
  }
  if (numTokens > 1 && spanS > 0) {
    parts.push(`${((numTokens - 1) / spanS).toFixed(1)} tokens/s`);
  }
  if (numTokens !== null) {
    parts.push(`${numTokens} tokens`);
  }
  if (answer.numLeftOut > 0) {
    parts.push(`the first ${answer.numLeftOut} questions no longer fitted and were left out`);
  }
  if (answer.calls.length > 0) {
    parts.push("calls are shown, and not run");
  }
  return [...parts, ...endOf(answer)];
}

function endOf(answer) {
  if (!isOver(answer)) {
    return ["unfinished"]; // its page was closed, or is another tab that is at it
  }
  if (answer.isStopped) {
    return ["stopped"];
  }
  if (answer.reason !== "length") {
    return [];
  }
  const hadRoom = answer.numTokens !== null && answer.numTokens < answer.maxTokens;
  return [hadRoom ? "stopped: its context is full" : "stopped at max tokens"];
}

function seconds(value) {
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} s`;
}
