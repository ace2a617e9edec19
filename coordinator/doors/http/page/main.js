/** The page: follows the coordinator's state for as long as it is open, and lets people chat. */

import { ApiError, events, request } from "./api.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Figures } from "./figures.js";
import { Picker } from "./picker.js";
import { Pipeline } from "./pipeline.js";

const RETRY_MS = 1000;

const chat = new Chat();
const figures = new Figures();
const pipeline = new Pipeline();
let shown = null; // the last state that was told
const picker = new Picker(() => {
  figures.forget();
  show(shown);
});

/** Shows the model that is picked. */
function show(status) {
  shown = status;
  const index = picker.pick(status.models);
  const state = stateOf(status, index);
  const isTold = status.models.length > 1 && state.names[0] === state.model;
  setText(byId("model"), isTold ? "" : state.model);
  setText(byId("version"), state.version);
  byId("emulated").hidden = !state.stages.some(({ emulated }) => emulated);
  setReady(state);
  figures.show(state);
  pipeline.show(state);
  chat.know(state);
  document.body.classList.remove("stale");
}

/** What is told of one model; all that stands beside `models` is of the first. */
function stateOf(status, index) {
  const model = status.models[index];
  if (index === 0) {
    const { ready, state, problem } = model;
    return { ...status, ready, state, problem };
  }
  return { ...status, ...model, activity: status.activities[index] };
}

function setReady({ ready, state: standing, problem, stages }) {
  const lost = stages.filter(({ state }) => state === "lost");
  const names = lost.map(({ index, address }) => `stage ${index} at ${address}`).join(", ");
  setPill(...pillOf(ready, standing, lost.length > 0));
  trouble(
    lost.length > 0
      ? `Lost: ${names}. Requests that run are paused and go on by themselves once it is back.`
      : ready
        ? null
        : whyNot(standing, problem),
  );
}

/** State and text of the pill. */
function pillOf(ready, standing, isLost) {
  if (ready) {
    return ["ready", "ready"];
  }
  if (standing === "failed") {
    return ["lost", "failed"];
  }
  return ["lost", isLost ? "stage lost" : "not ready"];
}

function whyNot(standing, problem) {
  if (standing === "failed") {
    return `This model cannot be served: ${problem}.`;
  }
  return problem
    ? `This model is not served yet: ${problem}.`
    : "No requests are served at present: the coordinator is shutting down or reconnects.";
}

function setPill(state, text) {
  byId("ready").className = `pill ${state}`;
  setText(byId("ready"), text);
}

function trouble(text) {
  byId("trouble").hidden = text === null;
  setText(byId("trouble"), text ?? "");
}

function showAway(error) {
  document.body.classList.add("stale");
  figures.interrupt();
  if (error instanceof ApiError) {
    setPill("connecting", "starting");
    trouble(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  } else {
    setPill("lost", "unreachable");
    trouble("The coordinator does not answer. What is shown is the last that it said.");
  }
}

async function follow() {
  for (;;) {
    try {
      for await (const state of events(await request("status/stream"))) {
        show(state);
      }
    } catch (error) {
      showAway(error);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

await follow();
