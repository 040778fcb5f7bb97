// The loss along one attack, for a network with kinks and for a smooth one, and how the error of first order shrinks.
const figure = (root, live, data) => {
  const { el, svg, range } = kit;
  const names = Object.keys(data.networks), colours = ["var(--kinked, #7c3aed)", "var(--smooth, #0f766e)"];
  const now = { at: Math.floor(0.8 * data.sizes.length) };
  const short = (v) => (v === 0 ? "0" : Math.abs(v) < 1e-3 ? v.toExponential(1) : `${+v.toPrecision(3)}`).replace("-", "\u2212");
  const left = svg("svg", { viewBox: "0 0 340 300", role: "img", "aria-label": "rise of the loss against the size of the attack" });
  const right = svg("svg", { viewBox: "0 0 340 300", role: "img", "aria-label": "error of the first order against the size, logarithmic" });
  const note = el("p", { class: "note", "aria-live": "polite" });
  const end = data.sizes.length - 1, sizes = data.sizes;
  const draw = () => {
    const reach = sizes[now.at], upto = sizes.map((_, i) => i).filter((i) => i <= now.at);
    const top = Math.max(...names.map((n) => Math.max(data.networks[n].damage[now.at], data.networks[n].slope * reach)));
    const X = (v) => 40 + 280 * v / reach, Y = (v) => 262 - 220 * Math.max(v, 0) / top;
    const curve = (n, c) => svg("polyline", { points: ["40,262", ...upto.map((i) => `${X(sizes[i]).toFixed(1)},${Y(data.networks[n].damage[i]).toFixed(1)}`)].join(" "),
      fill: "none", stroke: colours[c], "stroke-width": 2 });
    const tangent = (n, c) => svg("line", { x1: 40, y1: 262, x2: X(reach), y2: Y(data.networks[n].slope * reach), stroke: colours[c], "stroke-dasharray": "5 4" });
    const places = data.kinks.filter((k) => k <= reach);
    left.replaceChildren(svg("text", { x: 0, y: 14 }, "rise of the loss; dashed: first order"),
      svg("line", { x1: 40, x2: 320, y1: 262, y2: 262, stroke: "currentColor" }),
      ...places.map((k) => svg("line", { x1: X(k), x2: X(k), y1: 262, y2: 270, stroke: colours[0] })),
      ...names.flatMap((n, c) => [tangent(n, c), curve(n, c)]),
      svg("text", { x: 36, y: 46, "text-anchor": "end" }, `${+top.toPrecision(2)}`), svg("text", { x: 36, y: 266, "text-anchor": "end" }, "0"),
      svg("text", { x: 320, y: 290, "text-anchor": "end" }, `\u03b5 = ${short(reach)}; ticks: kinks`));
    const rests = names.flatMap((n) => data.networks[n].rest.map(Math.abs)).filter((v) => v > 0).map(Math.log);
    const low = Math.min(...rests), high = Math.max(...rests);
    const U = (i) => 40 + 280 * i / end, V = (v) => 262 - 220 * (Math.log(Math.abs(v)) - low) / (high - low);
    right.replaceChildren(svg("text", { x: 0, y: 14 }, "error of the first order, both logarithmic"),
      svg("line", { x1: 40, x2: 320, y1: 262, y2: 262, stroke: "currentColor" }),
      ...names.flatMap((n, c) => {
        const own = data.networks[n].rest.map((v, i) => [v, i]).filter(([v]) => v !== 0);
        return [svg("polyline", { points: own.map(([v, i]) => `${U(i).toFixed(1)},${V(v).toFixed(1)}`).join(" "), fill: "none", stroke: colours[c], "stroke-width": 1.5 }),
          ...own.map(([v, i]) => svg("circle", { cx: U(i), cy: V(v), r: i === now.at ? 6 : 2.5, fill: colours[c] })),
          svg("text", { x: 60, y: 44 + 18 * c, style: `fill:${colours[c]}` }, n)];
      }),
      svg("text", { x: 40, y: 290 }, short(sizes[0])), svg("text", { x: 320, y: 290, "text-anchor": "end" }, `\u03b5 = ${short(sizes[end])}`));
    note.textContent = `Size ${short(reach)}: ${places.length} kinks crossed. ` + names.map((n) => {
      const own = data.networks[n];
      return `${n}: the loss rises by ${short(own.damage[now.at])}, ${(100 * own.rest[now.at] / (own.slope * reach)).toFixed(1).replace("-", "\u2212")} per cent off the first order`;
    }).join("; ") + ".";
  };
  live.append(el("div", { class: "controls" },
    range("Size of the attack", [0, end, 1], now.at, (i) => short(sizes[i]), (i) => { now.at = i; draw(); })),
  el("div", { class: "panels halves" }, left, right), note);
  draw();
};
