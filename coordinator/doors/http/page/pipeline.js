/** The pipeline as a picture: the coordinator, and the stages in order, each on its own link. */

import { Bar, byId, bytes, count, element, milliseconds, percent, setText } from "./dom.js";

const MAX_LARGE_BOXES = 4;
const PARTS = ["compute", "queue", "wire", "serialize"];
const IDLE = { busy_share: 0, compute_ms: 0, queue_ms: 0, wire_ms: 0, serialize_ms: 0 };

export class Pipeline {
  constructor() {
    this.coordinator = new CoordinatorBox();
    this.stages = [];
    this.row = element("ol", "stages");
    byId("pipeline").append(this.coordinator.node, this.row);
  }

  /** @param {object} state As `/status/stream` tells it. */
  show(state) {
    this.coordinator.show(state);
    while (this.stages.length < state.stages.length) {
      const box = new StageBox();
      this.stages.push(box);
      this.row.append(box.node);
    }
    for (const box of this.stages.splice(state.stages.length)) {
      box.node.remove();
    }
    this.row.classList.toggle("compact", state.stages.length > MAX_LARGE_BOXES);
    const longestMs = Math.max(...state.activity.stages.map(roundTripMs), 1e-6);
    state.stages.forEach((stage, place) => {
      const activity = state.activity.stages[stage.index] ?? IDLE; // of all its servers
      this.stages[place].show(stage, activity, longestMs);
    });
  }
}

function roundTripMs(activity) {
  return PARTS.reduce((sum, part) => sum + activity[`${part}_ms`], 0);
}

/** A line of a name and a value, and what is left out of it where there is little room. */
class Row {
  constructor(name) {
    this.text = element("span", "");
    this.detail = element("span", "detail");
    const value = element("span", "value", this.text, this.detail);
    this.node = element("p", "row", element("span", "label", name), value);
  }

  show(text, detail = "") {
    setText(this.text, text);
    setText(this.detail, detail);
  }
}

class CoordinatorBox {
  constructor() {
    this.kv = new Bar("KV memory of all requests", ["kv", "cached"]);
    this.kvRow = new Row("KV");
    this.steps = new Row("steps a second");
    this.times = new Row("schedule · sample · detokenize");
    this.node = element(
      "div",
      "coordinator",
      element("h3", "", "Coordinator"),
      this.steps.node,
      this.times.node,
      element("div", "measure", this.kvRow.node, this.kv.node),
    );
  }

  show({ activity, kv_blocks_total: total, kv_blocks_free: free, kv_blocks_cached: cached }) {
    const stepsPerS = activity.steps === 0 ? 0 : activity.steps / activity.window_s;
    this.steps.show(stepsPerS.toFixed(1));
    const times = [activity.schedule_ms, activity.sample_ms, activity.emit_ms];
    this.times.show(activity.steps === 0 ? "–" : times.map(milliseconds).join(" · "));
    const held = (total - free) / Math.max(1, total);
    const kept = cached / Math.max(1, total);
    const text = `${percent(held)} in use, ${percent(kept)} cached`;
    this.kvRow.show(text);
    this.kv.show([held, kept], `${text} prefixes`);
  }
}

class StageBox {
  constructor() {
    this.title = element("h3", "");
    this.state = element("span", "pill");
    this.badge = element("span", "badge", "emulated");
    this.address = element("p", "address");
    this.loss = element("p", "loss");
    this.layers = new Row("layers");
    this.device = new Row("device");
    this.weights = new Row("weights");
    this.pool = new Row("KV pool");
    this.device.node.classList.add("detail");
    this.weights.node.classList.add("detail");
    this.pool.node.classList.add("detail");
    this.busyRow = new Row("busy");
    this.busy = new Bar("Busy", ["busy"]);
    this.kvRow = new Row("KV");
    this.kv = new Bar("KV memory", ["kv", "cached"]);
    this.splitRow = new Row("round trip");
    this.split = new Bar("Time of a step", PARTS);
    this.link = element("span", "link-text");
    this.box = element(
      "div",
      "stage",
      element("div", "stage-head", this.title, this.badge, this.state),
      this.address,
      this.loss,
      this.layers.node,
      this.device.node,
      this.weights.node,
      this.pool.node,
      element("div", "measure", this.busyRow.node, this.busy.node),
      element("div", "measure", this.kvRow.node, this.kv.node),
      element("div", "measure", this.splitRow.node, this.split.node),
    );
    const link = element("div", "link", this.link);
    link.setAttribute("aria-hidden", "true");
    this.node = element("li", "", link, this.box);
  }

  show(stage, activity, longestMs) {
    const isLost = stage.state === "lost";
    const flows = !isLost && activity.busy_share > 0;
    this.node.className = `${stage.state} ${flows ? "flowing" : ""}`;
    setText(this.title, `Stage ${stage.index}`);
    setText(this.state, stage.state);
    this.state.className = `pill ${stage.state}`;
    this.badge.hidden = !stage.emulated;
    setText(this.address, stage.address);
    this.loss.hidden = !isLost;
    setText(this.loss, "Not reachable.");
    this.layers.show(layersText(stage.layers));
    this.device.show(deviceText(stage));
    this.#showMemory(stage);
    this.#showKv(stage, isLost);
    this.#showTimes(isLost ? IDLE : activity, longestMs);
    if (isLost) {
      this.busyRow.show("–");
    }
  }

  #showMemory(stage) {
    const { weight_bytes: size, bits_per_weight: bits, kv_bytes: kvSize, kv_dtype: format } = stage;
    this.weights.show(size ? bytes(size) : "–", bits === null ? "" : ` · ${bits.toFixed(1)} bits`);
    const tokens = ` · ${count(stage.kv_blocks_total * stage.kv_block_size)} tokens`;
    this.pool.show(kvSize ? bytes(kvSize) : "–", format === null ? "" : ` · ${format}${tokens}`);
  }

  #showKv(stage, isLost) {
    const { kv_blocks_total: total, kv_blocks_free: empty, kv_blocks_cached: cached } = stage;
    if (isLost || total === 0) {
      this.kvRow.show("–");
      this.kv.show([0, 0], "unknown");
      return;
    }
    // What is cached is free for any request; the stage counts it as neither.
    const held = (total - empty - cached) / total;
    const kept = cached / total;
    const text = `${percent(held)} in use, ${percent(kept)} cached`;
    this.kvRow.show(text);
    this.kv.show([held, kept], `${text} prefixes`);
  }

  #showTimes(activity, longestMs) {
    this.busyRow.show(percent(activity.busy_share));
    this.busy.show([activity.busy_share], percent(activity.busy_share));
    const roundTrip = roundTripMs(activity);
    const shares = PARTS.map((part) => activity[`${part}_ms`] / longestMs);
    const words = PARTS.map((part) => `${part} ${milliseconds(activity[`${part}_ms`])}`);
    this.splitRow.show(roundTrip === 0 ? "–" : milliseconds(roundTrip));
    this.split.show(shares, roundTrip === 0 ? "no steps" : words.join(", "));
    setText(this.link, roundTrip === 0 ? "" : milliseconds(activity.wire_ms));
  }
}

/** What computes and in what, without what the badge says. */
function deviceText({ device, dtype }) {
  const parts = [device?.replace(/^emulated /, ""), dtype].filter(Boolean);
  return parts.join(" · ") || "unknown";
}

/** A half-open range of layers, as people say it. */
function layersText(layers) {
  if (layers === null) {
    return "unknown";
  }
  const [start, end] = layers;
  return `${start} to ${end - 1} (${end - start})`;
}
