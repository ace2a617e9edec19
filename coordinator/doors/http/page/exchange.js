/** A question and its answer as plain data, and what of them the model gets to see. */

const NOT_RUN = "There is no result: this call was not run.";

/**
 * @typedef {{id: string, name: string, arguments: string}} Call With its arguments as JSON.
 * @typedef {object} Answer What there is of it.
 * @property {string} model Who answers.
 * @property {string} reasoning What was thought before.
 * @property {string} content
 * @property {Call[]} calls
 * @property {string | null} reason Why it ended; null until then, and if it did not end by itself.
 * @property {string | null} error What it failed of.
 * @property {boolean} isStopped By the user.
 * @property {number} numLeftOut Exchanges that no longer fitted into its prompt.
 * @property {number | null} numTokens All that was generated; null until the end.
 * @property {number} numThoughtTokens Those of them that were thought.
 * @property {number | null} firstS Seconds from the question to the first token.
 * @property {number} spanS Seconds from there to the last token.
 * @property {number} thoughtS Seconds that it thought.
 * @property {number | null} maxTokens That it might have.
 * @typedef {{question: string, answer: Answer}} Exchange
 */

/** @returns {Exchange} A question, of whose answer there is nothing yet. */
export function newExchange(question, model) {
  const answer = {
    model,
    reasoning: "",
    content: "",
    calls: [],
    reason: null,
    error: null,
    isStopped: false,
    numLeftOut: 0,
    numTokens: null,
    numThoughtTokens: 0,
    firstS: null,
    spanS: 0,
    thoughtS: 0,
    maxTokens: null,
  };
  return { question, answer };
}

/** Whether something that was read from a store is an exchange. */
export function isExchange(value) {
  return (
    typeof value?.question === "string" &&
    typeof value.answer?.content === "string" &&
    typeof value.answer.reasoning === "string" &&
    Array.isArray(value.answer.calls)
  );
}

/** Whether anything was answered. */
export function saysSomething({ reasoning, content, calls }) {
  return reasoning !== "" || content !== "" || calls.length > 0;
}

/** Whether an answer is complete, or nothing more will come of it. */
export function isOver({ reason, error, isStopped }) {
  return reason !== null || error !== null || isStopped;
}

/** Whether the arguments of a call are whole. */
export function isWhole(call) {
  try {
    const found = JSON.parse(call.arguments || "{}");
    return typeof found === "object" && found !== null && !Array.isArray(found);
  } catch {
    return false;
  }
}

/**
 * Those exchanges that the model gets to see: questions without an answer are left out, so that
 * roles take turns.
 *
 * @param {Exchange[]} exchanges The last one waits for its answer.
 */
export function toldOf(exchanges) {
  return exchanges.filter(
    ({ answer }, index) => index === exchanges.length - 1 || saysSomething(answer),
  );
}

/**
 * The same as messages, oldest first.
 *
 * Thoughts stand beside what was said, once: the chat template decides which of them it shows.
 * Calls that were cut are left out.
 *
 * @param {Exchange[]} told The last one waits for its answer.
 */
export function messagesOf(told) {
  return [
    ...told.slice(0, -1).flatMap(({ question, answer }) => [user(question), ...turnsOf(answer)]),
    user(told.at(-1).question),
  ];
}

function user(content) {
  return { role: "user", content };
}

function turnsOf({ reasoning, content, calls }) {
  const whole = calls.filter(isWhole);
  const toolCalls = whole.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text || "{}" },
  }));
  return [
    {
      role: "assistant",
      content,
      ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
      ...(toolCalls.length === 0 ? {} : { tool_calls: toolCalls }),
    },
    ...whole.map(({ id }) => ({ role: "tool", tool_call_id: id, content: NOT_RUN })),
  ];
}
