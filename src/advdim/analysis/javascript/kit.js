// What the figures share: elements, controls, packed data. `kit.start` hands a figure its root and its data.
const kit = (() => {
  const make = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  };
  const el = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // A row of radio buttons. `options` are [value, label] pairs.
  let groups = 0;
  const choice = (root, legend, options, value, changed) => {
    const name = `${root.id}-${++groups}`;
    return el("fieldset", {}, el("legend", {}, legend), options.map(([key, label]) => {
      const input = el("input", { type: "radio", name, value: key, onchange: () => changed(key) });
      input.checked = key === value;
      return el("label", {}, input, label);
    }));
  };

  // A slider with its value in words beside it.
  const range = (label, [from, to, step], value, words, changed) => {
    const shown = el("b", {}, words(value));
    const input = el("input", {
      type: "range", min: from, max: to, step, value, "aria-valuetext": words(value),
      oninput: () => {
        shown.textContent = words(+input.value);
        input.setAttribute("aria-valuetext", words(+input.value));
        changed(+input.value);
      },
    });
    const row = el("label", { class: "range" }, label, input, shown);
    row.set = (to) => { input.value = to; input.dispatchEvent(new Event("input")); };
    return row;
  };

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  // Bits, the first in the highest place of the first byte, as +1 and -1.
  const signs = (text, n) => {
    const packed = bytes(text);
    return Int8Array.from({ length: n }, (_, i) => (packed[i >> 3] >> (7 - (i & 7)) & 1 ? 1 : -1));
  };
  // The same numbers on every visit.
  const random = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };

  const start = (id, figure) => {
    const root = document.getElementById(id);
    if (!root || root.classList.contains("playing")) return;
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    const live = el("div", { class: "live" });
    figure(root, live, data);
    root.append(live);
    root.classList.add("playing");
  };
  return { el, svg, choice, range, bytes, signs, random, start };
})();
