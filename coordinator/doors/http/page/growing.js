/** Takes the events of a stream into an answer, with the times at which they came. */

export class Growing {
  /** @param {import("./exchange.js").Answer} answer Grows. */
  constructor(answer) {
    this.answer = answer;
    this.askedMs = performance.now();
    this.firstMs = null;
    this.thoughtMs = null; // when it began to think
  }

  /**
   * Takes in one event, of either kind of completion.
   *
   * @returns {boolean} Whether there is more to show.
   */
  take({ choices, usage }) {
    const { answer } = this;
    if (usage) {
      answer.numTokens = usage.completion_tokens;
      answer.numThoughtTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    }
    let hasMore = false;
    for (const { delta = {}, text, token_ids: tokenIds, finish_reason: reason } of choices) {
      answer.reason = reason ?? answer.reason;
      const ids = tokenIds?.length ? `${tokenIds.join(" ")} ` : "";
      const thought = delta.reasoning_content ?? delta.reasoning ?? "";
      const content = (delta.content ?? text ?? "") || (text === undefined ? "" : ids);
      const calls = delta.tool_calls ?? [];
      if (thought === "" && content === "" && calls.length === 0) {
        continue;
      }
      this.#time(thought !== "");
      answer.reasoning += thought;
      answer.content += content;
      calls.forEach((call) => this.#takeCall(call));
      hasMore = true;
    }
    return hasMore;
  }

  #time(isThought) {
    const { answer } = this;
    const nowMs = performance.now();
    this.firstMs ??= nowMs;
    answer.firstS ??= (nowMs - this.askedMs) / 1000;
    answer.spanS = (nowMs - this.firstMs) / 1000;
    if (isThought) {
      this.thoughtMs ??= nowMs;
    }
    if (this.thoughtMs !== null && answer.content === "" && answer.calls.length === 0) {
      answer.thoughtS = (nowMs - this.thoughtMs) / 1000;
    }
  }

  /** A call has its id and its name once, and its arguments in pieces. */
  #takeCall({ index, id, function: called }) {
    const { calls } = this.answer;
    calls[index] ??= { id: "", name: "", arguments: "" };
    const call = calls[index];
    call.id = id ?? call.id;
    call.name = called?.name ?? call.name;
    call.arguments += called?.arguments ?? "";
  }
}
