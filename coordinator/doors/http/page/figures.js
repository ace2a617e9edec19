/** The figures at the top: tokens per second now and over the last minute, and what is running. */

import { byId, count, drawing, element, setText } from "./dom.js";

const NUM_POINTS = 60;
const WIDTH = 300;
const HEIGHT = 64;

export class Figures {
  constructor() {
    this.rates = [];
    this.last = null;
    this.counts = new Map();
    this.area = drawing("path", { class: "area" });
    this.line = drawing("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    byId("sparkline").append(this.area, this.line);
  }

  /** Forgets what came before: the coordinator was away. */
  interrupt() {
    this.last = null;
  }

  /** Forgets all: what comes next is of another model. */
  forget() {
    this.last = null;
    this.rates = [];
    setText(byId("speed"), "0");
    setText(byId("mean"), "");
    this.line.setAttribute("d", "");
    this.area.setAttribute("d", "");
  }

  /** @param {object} state As `/status/stream` tells it. */
  show(state) {
    this.#showSpeed(state);
    const most = state.max_num_seqs;
    this.#count("running", count(state.running), most === 0 ? "" : `of ${count(most)}`);
    this.#count("waiting", count(state.waiting), waitsFor(state));
    this.#count("finished", count(state.finished), "");
    this.#count("preempted", count(state.preemptions), "");
    this.#count("prefix hits", prefixHits(state), "");
    this.#count("guesses right", guessesRight(state), "");
  }

  #showSpeed({ at_s: atS, generated_tokens: tokens, tokens_per_s: mean }) {
    const last = this.last;
    this.last = { atS, tokens };
    if (last === null || tokens < last.tokens || atS <= last.atS) {
      return;
    }
    const rate = (tokens - last.tokens) / (atS - last.atS);
    this.rates = [...this.rates, rate].slice(-NUM_POINTS);
    setText(byId("speed"), rate >= 100 ? count(rate) : rate.toFixed(1));
    const peak = Math.max(...this.rates);
    setText(byId("mean"), `${mean.toFixed(1)} over ten seconds, peak ${peak.toFixed(1)}`);
    this.#draw();
  }

  #draw() {
    const top = Math.max(1, ...this.rates) * 1.1;
    const step = WIDTH / (NUM_POINTS - 1);
    const start = WIDTH - (this.rates.length - 1) * step;
    const points = this.rates.map((rate, index) => {
      const y = HEIGHT - 2 - (rate / top) * (HEIGHT - 4);
      return `${(start + index * step).toFixed(1)},${y.toFixed(1)}`;
    });
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${start},${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z`);
  }

  #count(name, value, note) {
    if (!this.counts.has(name)) {
      const shown = element("dd", "");
      const hint = element("dd", "hint");
      byId("counts").append(element("div", "", element("dt", "label", name), shown, hint));
      this.counts.set(name, { shown, hint });
    }
    const { shown, hint } = this.counts.get(name);
    setText(shown, value);
    setText(hint, note);
  }
}

function waitsFor({ waiting, ready }) {
  if (waiting === 0) {
    return "";
  }
  return ready ? "for memory or a slot" : "for a stage";
}

function prefixHits({ prefix_query_tokens: asked, prefix_hit_tokens: held }) {
  return share(held, asked);
}

function guessesRight({ draft_tokens: guessed, accepted_draft_tokens: right }) {
  return share(right, guessed);
}

function share(part, whole) {
  return whole === 0 ? "–" : `${((part / whole) * 100).toFixed(0)} %`;
}
