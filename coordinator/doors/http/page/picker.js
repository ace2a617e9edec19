/** Which of several models the page shows, and talks to; nobody is asked where there is one. */

import { byId, element, setText } from "./dom.js";
import { Store } from "./storage.js";

const CHOICE = "model";

export class Picker {
  /** @param {() => void} onPick Called when another model is picked. */
  constructor(onPick) {
    this.store = new Store("sessionStorage");
    this.names = [];
    this.node = byId("picker");
    this.node.addEventListener("change", () => {
      this.store.set(CHOICE, this.node.value);
      onPick();
    });
  }

  /**
   * Offers these models, and says which one is picked: the first until another was.
   *
   * @param {{names: string[], state: string}[]} models
   * @returns {number} Its place among them.
   */
  pick(models) {
    const names = models.map(({ names: [name] }) => name);
    if (names.join("\n") !== this.names.join("\n")) {
      this.names = names;
      this.node.replaceChildren(...names.map(() => element("option", "")));
      names.forEach((name, index) => {
        this.node.options[index].value = name;
      });
    }
    models.forEach(({ state }, index) => {
      const note = state === "serving" ? "" : ` (${state})`;
      setText(this.node.options[index], `${names[index]}${note}`);
    });
    const index = Math.max(0, names.indexOf(this.store.get(CHOICE)));
    this.node.selectedIndex = index;
    this.node.hidden = names.length === 1;
    return index;
  }
}
