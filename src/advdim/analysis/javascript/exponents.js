// Recorded networks: measured exponents beside what path counting says, and the slope over a range of sizes.
const figure = (root, live, data) => {
  const { el, svg, range } = kit;
  const now = { set: data.sets[0].name, network: 0, from: 0, to: 99 };
  const set = () => data.sets.find((s) => s.name === now.set);
  const slope = (d, values) => {
    const x = d.map(Math.log), y = values.map(Math.log), n = x.length;
    const mx = x.reduce((a, b) => a + b) / n, my = y.reduce((a, b) => a + b) / n;
    return x.reduce((s, v, i) => s + (v - mx) * (y[i] - my), 0) / x.reduce((s, v) => s + (v - mx) ** 2, 0);
  };
  const part = (net, key, d) => [d.slice(now.from, now.to + 1), net[key].slice(now.from, now.to + 1)];
  const all = svg("svg", { viewBox: "0 0 330 330", role: "group", "aria-label": "measured against predicted exponents" });
  const one = svg("svg", { viewBox: "0 0 400 330", role: "img", "aria-label": "gradient norm against the side of the image" });
  const note = el("p", { class: "note", "aria-live": "polite" });
  const pick = el("select", { onchange: () => { now.network = +pick.value; draw(); } });
  const filters = [["init", "initialisation"], ["padding", "padding"], ["readout", "readout"]].map(([key, words]) => {
    const box = el("select", { onchange: () => { fill(); draw(); } });
    return { key, box, row: el("label", { class: "range" }, words, box) };
  });
  const kept = () => set().networks.map((net, i) => [net, i]).filter(([net]) => filters.every((f) => f.box.value === "all" || net[f.key] === f.box.value));
  const fill = () => {
    pick.replaceChildren(...kept().map(([net, i]) => el("option", { value: i, selected: i === now.network }, net.name)));
    if (!kept().some(([, i]) => i === now.network) && kept().length) now.network = kept()[0][1];
    pick.value = now.network;
  };
  const fresh = () => {
    filters.forEach((f) => f.box.replaceChildren(el("option", { value: "all" }, "all"),
      ...[...new Set(set().networks.map((net) => net[f.key]))].sort().map((v) => el("option", { value: v }, v))));
    now.network = 0;
    now.from = 0;
    now.to = set().sizes.length - 1;
    fill();
    sliders.replaceChildren(
      range("from", [0, set().sizes.length - 2, 1], 0, (i) => `${set().sizes[i]} px`, (i) => { now.from = Math.min(i, now.to - 1); draw(); }),
      range("to", [1, set().sizes.length - 1, 1], now.to, (i) => `${set().sizes[i]} px`, (i) => { now.to = Math.max(i, now.from + 1); draw(); }));
    draw();
  };
  const sliders = el("div", { class: "controls" });
  const draw = () => {
    const { sizes, d, networks } = set(), X = (v) => 40 + 340 * (v + 0.1), Y = (v) => 290 - 340 * (v + 0.1);
    const shown = new Set(kept().map(([, i]) => i));
    all.replaceChildren(
      svg("text", { x: 0, y: 12 }, "measured exponent in d"), svg("text", { x: 320, y: 325, "text-anchor": "end" }, "predicted by path counting"),
      ...[0, 0.25, 0.5].flatMap((v) => [svg("line", { x1: 40, x2: 320, y1: Y(v), y2: Y(v), stroke: "var(--faint)" }),
        svg("line", { y1: 20, y2: 290, x1: X(v), x2: X(v), stroke: "var(--faint)" }),
        svg("text", { x: 34, y: Y(v) + 4, "text-anchor": "end" }, `${v}`), svg("text", { x: X(v), y: 306, "text-anchor": "middle" }, `${v}`)]),
      svg("line", { x1: X(-0.08), y1: Y(-0.08), x2: X(0.7), y2: Y(0.7), stroke: "currentColor", "stroke-dasharray": "5 4" }),
      ...networks.map((net, i) => shown.has(i) ? svg("circle", { cx: X(slope(...part(net, "walk", d))), cy: Y(slope(...part(net, "l1", d))),
        r: i === now.network ? 8 : 5, fill: i === now.network ? "var(--hot)" : "var(--cool)", "fill-opacity": 0.8, style: "cursor:pointer",
        onclick: () => { now.network = i; pick.value = i; draw(); } }, svg("title", {}, net.name)) : null).filter(Boolean));
    const net = networks[now.network], values = [...net.l1, ...net.walk], low = Math.log(Math.min(...values)) - 0.15, high = Math.log(Math.max(...values)) + 0.15;
    const U = (i) => 60 + 320 * Math.log(d[i] / d[0]) / Math.log(d[d.length - 1] / d[0]), V = (v) => 290 - 250 * (Math.log(v) - low) / Math.max(high - low, 1);
    const line = (key, colour, dash) => svg("polyline", { points: net[key].map((v, i) => `${U(i)},${V(v)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash });
    one.replaceChildren(svg("rect", { x: U(now.from) - 6, width: U(now.to) - U(now.from) + 12, y: 24, height: 266, fill: "var(--faint)", opacity: 0.5 }),
      svg("text", { x: 0, y: 12 }, "mean \u2016\u2207L\u2016\u2081; dashed: from the paths"),
      line("walk", "currentColor", "5 4"), line("l1", "var(--hot)"),
      ...net.l1.flatMap((v, i) => [svg("circle", { cx: U(i), cy: V(v), r: 5, fill: i >= now.from && i <= now.to ? "var(--hot)" : "var(--soft)" }),
        svg("text", { x: U(i), y: V(v) - 10, "text-anchor": "middle" }, `${+v.toPrecision(2)}`), svg("text", { x: U(i), y: 306, "text-anchor": "middle" }, `${sizes[i]}`)]),
      svg("text", { x: 380, y: 325, "text-anchor": "end" }, "side of the image, pixels"));
    note.textContent = `${net.name}, ${sizes[now.from]} to ${sizes[now.to]} pixels: exponent ${slope(...part(net, "l1", d)).toFixed(2)}, ` +
      `predicted ${slope(...part(net, "walk", d)).toFixed(2)}.`;
  };
  live.append(el("div", { class: "controls" },
    kit.choice(root, "Images", data.sets.map((s) => [s.name, s.name]), now.set, (value) => { now.set = value; fresh(); }), ...filters.map((f) => f.row)),
  el("div", { class: "controls" }, el("label", { class: "range" }, "Network", pick)), sliders, el("div", { class: "panels two even" }, all, one), note);
  fresh();
};
