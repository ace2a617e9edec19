/** Makes elements. Text is only ever set as text, never parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element.
 *
 * @param {string} tag
 * @param {string} className
 * @param {...(Node | string)} children
 */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

/**
 * Makes an element of a drawing.
 *
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 */
export function drawing(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  return made;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Sets the text of an element, if it is another one: what did not change is not read out again. */
export function setText(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

/** A bar of one or more parts, each a share of the whole. */
export class Bar {
  /**
   * @param {string} label What it measures, for those who cannot see it.
   * @param {string[]} parts A class of each part.
   */
  constructor(label, parts) {
    this.label = label;
    this.parts = parts.map((part) => element("span", part));
    this.node = element("div", "bar", ...this.parts);
    this.node.setAttribute("role", "img");
  }

  /**
   * @param {number[]} shares Of each part, from 0 to 1.
   * @param {string} text The same in words.
   */
  show(shares, text) {
    shares.forEach((share, index) => {
      this.parts[index].style.width = `${Math.min(1, Math.max(0, share)) * 100}%`;
    });
    this.node.setAttribute("aria-label", `${this.label}: ${text}`);
    this.node.title = text;
  }
}

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count, with separators. */
export function count(value) {
  return GROUPED.format(value);
}

/** A share as a percentage. */
export function percent(share) {
  const value = share * 100;
  if (value > 0 && value < 0.1) {
    return "< 0.1 %";
  }
  return `${value > 0 && value < 10 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** A duration, from milliseconds. */
export function milliseconds(value) {
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(value >= 1 ? 3 : 2)} ms`;
}

/** A size, from bytes. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, value)) / 10));
  const scaled = value / 1024 ** power;
  return `${scaled >= 100 || power === 0 ? scaled.toFixed(0) : scaled.toFixed(1)} ${units[power]}`;
}
