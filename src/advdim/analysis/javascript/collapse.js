// Trained networks, a mark each: choose what the axes show and which methods are drawn, and step through the networks.
const figure = (root, live, data) => {
  const { el, svg, range } = kit;
  const points = data.methods.flatMap((method) => method.points.map(([strength, seed, ...values]) => ({ method, strength, seed, values })));
  const now = { x: 0, y: 1, one: 0, hidden: new Set() };
  const shapes = { // around (0, 0), of about equal area
    circle: "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0", square: "M-4.5,-4.5H4.5V4.5H-4.5Z", up: "M0,-6L5.5,4H-5.5Z",
    down: "M0,6L5.5,-4H-5.5Z", diamond: "M0,-6.5L6.5,0L0,6.5L-6.5,0Z", plus: "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    star: "M0,-8L2,-2.6L7.6,-2.5L3.2,1L4.7,6.5L0,3.3L-4.7,6.5L-3.2,1L-7.6,-2.5L-2,-2.6Z",
  };
  const drawing = svg("svg", { class: "wide", viewBox: "0 0 720 380", role: "group", "aria-label": "trained networks over two of their measurements" });
  const note = el("p", { class: "note", "aria-live": "polite" });
  const short = (v) => `${+v.toPrecision(3)}`;
  const scale = (k, from, to) => {
    const values = points.map((p) => p.values[k]).filter((v) => v > 0).map(Math.log);
    const low = Math.min(...values), high = Math.max(...values);
    return (v) => from + (to - from) * (Math.log(v) - low) / (high - low);
  };
  const ticks = (k) => {
    const values = points.map((p) => p.values[k]).filter((v) => v > 0), low = Math.min(...values), high = Math.max(...values);
    const found = [];
    for (let e = -4; e < 5; e++) [1, 2, 5].forEach((m) => { const v = m * 10 ** e; if (v >= low * 0.999 && v <= high * 1.001) found.push(v); });
    return found;
  };
  const draw = () => {
    const X = scale(now.x, 80, 690), Y = scale(now.y, 320, 30), chosen = points[now.one];
    const seen = points.filter((p) => p.values[now.x] > 0 && p.values[now.y] > 0 && !now.hidden.has(p.method.name));
    const mark = (p) => svg("path", { d: shapes[p.method.shape], transform: `translate(${X(p.values[now.x]).toFixed(1)},${Y(p.values[now.y]).toFixed(1)})`,
      fill: p.method.colour, "fill-opacity": 0.85, style: "cursor:pointer", onclick: () => step.set(points.indexOf(p)) },
    svg("title", {}, `${p.method.name}, strength ${p.strength}`));
    drawing.replaceChildren(
      svg("text", { x: 0, y: 14 }, data.axes[now.y]), svg("text", { x: 690, y: 372, "text-anchor": "end" }, data.axes[now.x]),
      ...ticks(now.x).flatMap((v) => [svg("line", { x1: X(v), x2: X(v), y1: 24, y2: 326, stroke: "var(--faint)" }),
        svg("text", { x: X(v), y: 344, "text-anchor": "middle" }, short(v))]),
      ...ticks(now.y).flatMap((v) => [svg("line", { x1: 74, x2: 696, y1: Y(v), y2: Y(v), stroke: "var(--faint)" }),
        svg("text", { x: 68, y: Y(v) + 4, "text-anchor": "end" }, short(v))]),
      ...seen.map(mark),
      seen.includes(chosen) ? svg("circle", { cx: X(chosen.values[now.x]), cy: Y(chosen.values[now.y]), r: 11, fill: "none", stroke: "currentColor", "stroke-width": 2 }) : "");
    note.textContent = `${chosen.method.name}, strength ${chosen.strength}, seed ${chosen.seed}: ` +
      data.axes.map((name, k) => `${name} ${short(chosen.values[k])}`).join("; ") + ".";
  };
  const pick = (words, axis) => {
    const box = el("select", { onchange: () => { now[axis] = +box.value; draw(); } }, data.axes.map((name, k) => el("option", { value: k }, name)));
    box.value = now[axis];
    return el("label", { class: "range" }, words, box);
  };
  const toggles = data.methods.map((method) => {
    const box = el("input", { type: "checkbox", onchange: () => { now.hidden[box.checked ? "delete" : "add"](method.name); draw(); } });
    box.checked = true;
    return el("label", {}, box, svg("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
      svg("path", { d: shapes[method.shape], fill: method.colour })), method.name);
  });
  const step = range("Network", [0, points.length - 1, 1], 0, (k) => `${k + 1} of ${points.length}`, (k) => { now.one = k; draw(); });
  live.append(el("div", { class: "controls" }, pick("across", "x"), pick("up", "y"), step),
    el("fieldset", {}, el("legend", {}, "Methods"), ...toggles), drawing, note);
  draw();
};
