// The worst perturbation in an l_p ball: in the plane, and where it spends its budget on 64 coordinates.
const figure = (root, live, data) => {
  const { el, svg, range } = kit;
  const now = { angle: data.angle, place: data.place }; // place: 1/p from 1 to 0
  const exponent = () => (now.place <= 0 ? Infinity : 1 / now.place);
  const name = (v) => (v === Infinity ? "\u221e" : v.toFixed(2).replace(/\.?0+$/, ""));
  const norm = (v, p) => (p === Infinity ? Math.max(...v.map(Math.abs))
    : Math.max(...v.map(Math.abs)) * v.reduce((s, a) => s + (Math.abs(a) / Math.max(...v.map(Math.abs))) ** p, 0) ** (1 / p));
  const dual = (p) => (p === 1 ? Infinity : p === Infinity ? 1 : p / (p - 1));
  const worst = (g, p) => { // of norm 1
    if (p === Infinity) return g.map(Math.sign);
    const top = Math.max(...g.map(Math.abs));
    if (p === 1) { const k = g.findIndex((v) => Math.abs(v) === top); return g.map((v, i) => (i === k ? Math.sign(v) : 0)); }
    const d = g.map((v) => Math.sign(v) * (Math.abs(v) / top) ** (dual(p) - 1)), size = norm(d, p);
    return d.map((v) => v / size);
  };
  const plane = svg("svg", { viewBox: "-155 -155 310 310", role: "img", "aria-label": "unit ball, gradient and worst perturbation" });
  const bars = svg("svg", { viewBox: "0 0 420 260", role: "img", "aria-label": "gradient and worst perturbation over 64 coordinates" });
  const note = el("p", { class: "note", "aria-live": "polite" });
  const R = 78;
  const draw = () => {
    const p = exponent(), q = dual(p), g = [Math.cos(now.angle), Math.sin(now.angle)], d = worst(g, p);
    const ring = Array.from({ length: 181 }, (_, k) => {
      const u = [Math.cos(k * Math.PI / 90), Math.sin(k * Math.PI / 90)], n = norm(u, p);
      return `${(R * u[0] / n).toFixed(1)},${(-R * u[1] / n).toFixed(1)}`;
    }).join(" ");
    const side = d[0] * g[1] < d[1] * g[0] ? -16 : 16; // the name of the perturbation stands away from g
    const h = norm(g, q), foot = g.map((v) => v * h); // the line <g, delta> = ||g||_q; g has length 1
    const along = [-g[1], g[0]], end = (t) => foot.map((v, i) => v + t * along[i]);
    const arrow = (v, colour, width) => svg("g", {}, svg("line", { x1: 0, y1: 0, x2: R * v[0], y2: -R * v[1], stroke: colour, "stroke-width": width }),
      svg("circle", { cx: R * v[0], cy: -R * v[1], r: 5, fill: colour }));
    plane.replaceChildren(
      svg("line", { x1: -150, x2: 150, y1: 0, y2: 0, stroke: "var(--faint)" }), svg("line", { y1: -150, y2: 150, x1: 0, x2: 0, stroke: "var(--faint)" }),
      svg("polygon", { points: ring, fill: "var(--faint)", stroke: "currentColor" }),
      svg("line", { x1: R * end(-1.3)[0], y1: -R * end(-1.3)[1], x2: R * end(1.3)[0], y2: -R * end(1.3)[1], stroke: "currentColor", "stroke-dasharray": "5 4" }),
      arrow(g.map((v) => 1.5 * v), "var(--cool)", 2), arrow(d, "var(--hot)", 3),
      svg("text", { x: R * 1.62 * g[0], y: -R * 1.62 * g[1] + 4, style: "fill:var(--cool)" }, "g"),
      svg("text", { x: R * 0.6 * d[0] + side * d[1] - 6, y: side * d[0] - R * 0.6 * d[1] + 6, style: "fill:var(--hot)" }, "\u03b4*"));
    const many = data.g, spent = worst(many, p), tall = Math.max(...spent.map(Math.abs)), most = Math.max(...many.map(Math.abs));
    const used = spent.map((v) => (p === Infinity ? 1 : Math.abs(v) ** p)), sorted = [...used].sort((a, b) => b - a);
    const sum = used.reduce((a, b) => a + b, 0);
    let half = 0, total = 0;
    while (total < sum / 2 - 1e-12) total += sorted[half++];
    bars.replaceChildren(svg("text", { x: 0, y: 12 }, "the gradient's 64 coordinates"), svg("text", { x: 0, y: 142 }, "the worst perturbation's 64 coordinates"),
      ...many.flatMap((v, i) => [
        svg("rect", { x: 6.4 * i, width: 5, y: 70 - Math.max(0, 48 * v / most), height: 48 * Math.abs(v) / most, fill: "var(--cool)" }),
        svg("rect", { x: 6.4 * i, width: 5, y: 200 - Math.max(0, 48 * spent[i] / tall), height: 48 * Math.abs(spent[i]) / tall, fill: "var(--hot)" }),
      ]));
    note.textContent = `p = ${name(p)}, q = ${name(q)}. In the plane the dual norm of g is ${h.toFixed(3)}: so much the worst perturbation of size 1 gains. ` +
      `Of 64 coordinates, ${half} take half of the budget.`;
  };
  const angle = range("Direction of g", [-180, 180, 3], Math.round(now.angle * 180 / Math.PI), (v) => `${v}\u00b0`, (v) => { now.angle = v * Math.PI / 180; draw(); });
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = plane.getBoundingClientRect();
    const at = Math.atan2(box.top + box.height / 2 - event.clientY, event.clientX - box.left - box.width / 2);
    angle.set(Math.round(at * 60 / Math.PI) * 3);
  };
  plane.style.touchAction = "pan-y";
  plane.style.cursor = "crosshair";
  plane.addEventListener("pointerdown", (event) => { plane.setPointerCapture(event.pointerId); drag(event); });
  plane.addEventListener("pointermove", drag);
  live.append(el("div", { class: "controls" },
    range("p", [0, 1, 0.01], 1 - now.place, (v) => name(v >= 1 ? Infinity : 1 / (1 - v)), (v) => { now.place = v >= 1 ? 0 : 1 - v; draw(); }), angle),
  el("div", { class: "panels two" }, plane, bars), note);
  draw();
};
