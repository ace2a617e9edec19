/** The page: follows the coordinator's state for as long as it is open, and lets people chat. */

import { ApiError, events, request } from "./api.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Figures } from "./figures.js";
import { Pipeline } from "./pipeline.js";

const RETRY_MS = 1000;

const chat = new Chat();
const figures = new Figures();
const pipeline = new Pipeline();

/** Shows the first model; where there are more, it says so. */
function show(status) {
  const { models } = status;
  const state = { ...status, ready: models[0].ready };
  const more = models.length > 1 ? `, the first of ${models.length} models` : "";
  setText(byId("model"), `${state.model}${more}`);
  setText(byId("version"), state.version);
  byId("emulated").hidden = !state.stages.some(({ emulated }) => emulated);
  setReady(state);
  figures.show(state);
  pipeline.show(state);
  chat.know(state);
  document.body.classList.remove("stale");
}

function setReady({ ready, stages }) {
  const lost = stages.filter(({ state }) => state === "lost");
  const names = lost.map(({ index, address }) => `stage ${index} at ${address}`).join(", ");
  setPill(ready ? "ready" : "lost", ready ? "ready" : lost.length > 0 ? "stage lost" : "not ready");
  trouble(
    lost.length > 0
      ? `Lost: ${names}. Requests that run are paused and go on by themselves once it is back.`
      : ready
        ? null
        : "No requests are served at present: the coordinator is shutting down or reconnects.",
  );
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
      for await (const state of events(await request("/status/stream"))) {
        show(state);
      }
    } catch (error) {
      showAway(error);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

await follow();
