// Network 4-3-3-1: its paths, their gates and products, and the walk that counts them.
const figure = (root, live, data) => {
  const { el, svg, choice, random } = kit;
  const W = data.weights, x = data.image; // W[l][to][from]
  const sizes = [4, 3, 3, 1], columns = [70, 250, 430, 610];
  const row = (layer, i) => 40 + (i + 0.5) * 230 / sizes[layer];
  // Forward: a gate is open where its neuron's input is positive; the output has none.
  const open = [], act = [x];
  W.forEach((layer, l) => {
    const z = layer.map((weights) => weights.reduce((sum, w, i) => sum + w * act[l][i], 0));
    open.push(z.map((v) => l === 2 || v > 0));
    act.push(l === 2 ? z : z.map((v) => Math.max(0, v)));
  });
  const paths = (pixel) => [0, 1, 2].flatMap((a) => [0, 1, 2].map((b) => ({
    a, b, open: open[0][a] && open[1][b], product: W[0][a][pixel] * W[1][b][a] * W[2][0][b],
  })));
  const gradient = x.map((_, i) => paths(i).filter((p) => p.open).reduce((sum, p) => sum + p.product, 0));

  const now = { pixel: 0, mode: "paths", wiring: "full", arrivals: [], walkers: 0, lost: 0 };
  const drawing = svg("svg", { class: "wide", viewBox: "0 0 720 300", role: "group", "aria-label": "network of 4 pixels, 3 and 3 neurons and 1 output" });
  const note = el("p", { class: "note", "aria-live": "polite" });
  const table = el("div");
  const sign = (v) => (v < 0 ? "\u2212" : "+") + Math.abs(v).toFixed(2);

  const drawPaths = () => {
    const mine = paths(now.pixel), lit = new Set();
    mine.filter((p) => p.open).forEach((p) => [`0-${p.a}-${now.pixel}`, `1-${p.b}-${p.a}`, `2-0-${p.b}`].forEach((e) => lit.add(e)));
    const edges = W.flatMap((layer, l) => layer.flatMap((weights, to) => weights.map((w, from) => {
      const on = lit.has(`${l}-${to}-${from}`);
      return svg("line", { x1: columns[l], y1: row(l, from), x2: columns[l + 1], y2: row(l + 1, to),
        stroke: on ? w > 0 ? "var(--cool)" : "var(--hot)" : "var(--faint)", "stroke-width": on ? 1 + 2.5 * Math.abs(w) : 1 });
    })));
    const choose = (i) => { now.pixel = i; draw(); drawing.querySelectorAll("[tabindex]")[i].focus(); };
    const nodes = sizes.flatMap((n, l) => Array.from({ length: n }, (_, i) => {
      const shut = l > 0 && l < 3 && !open[l - 1][i];
      const attributes = { cx: columns[l], cy: row(l, i), r: 15, stroke: "currentColor", "stroke-width": 1.5,
        "stroke-dasharray": shut ? "3 3" : null,
        fill: l === 0 && i === now.pixel ? "var(--cool)" : "var(--pst-color-background, Canvas)" };
      if (l) return svg("g", {}, svg("circle", attributes),
        svg("text", { x: columns[l], y: row(l, i) + 4, "text-anchor": "middle" }, l === 3 ? "f" : shut ? "0" : "1"));
      const key = (event) => {
        const to = { Enter: i, " ": i, ArrowDown: (i + 1) % 4, ArrowUp: (i + 3) % 4 }[event.key];
        if (to !== undefined) { event.preventDefault(); choose(to); }
      };
      return svg("g", { tabindex: 0, role: "button", "aria-label": `pixel ${i + 1}`, "aria-pressed": String(i === now.pixel),
        style: "cursor:pointer", onclick: () => choose(i), onkeydown: key }, svg("circle", attributes),
      svg("text", { x: columns[0] - 24, y: row(0, i) + 4, "text-anchor": "end" }, `x${"\u2081\u2082\u2083\u2084"[i]}`));
    }));
    drawing.replaceChildren(...edges, ...nodes);
    const lines = mine.map((p) => svg ? `x${"\u2081\u2082\u2083\u2084"[now.pixel]} \u2192 ${p.a + 1} \u2192 ${p.b + 1} \u2192 f: ${p.open ? sign(p.product) : "shut"}` : "");
    table.replaceChildren(el("ul", { style: "columns:3 11rem;list-style:none;padding:0;margin:0" },
      lines.map((line, k) => el("li", { style: mine[k].open ? "" : "color:var(--soft)" }, line))));
    note.textContent = `${mine.filter((p) => p.open).length} of 9 paths from pixel ${now.pixel + 1} are open. Their products sum to ` +
      `${sign(gradient[now.pixel])}, the derivative of f in this pixel. Choose another pixel by click or arrow key.`;
  };

  // The walk: from the output backwards, at each layer to an input of the neuron at random. A path's chance is the product
  // of 1 / in-degree; the share of walkers that arrive at a pixel estimates its second moment.
  const L = 8, DEPTH = 3;
  const step = { // three inputs of a position, -1 where padding holds nothing
    full: () => Array.from({ length: L }, (_, i) => i),
    circular: (i) => [(i + L - 1) % L, i, (i + 1) % L],
    reflect: (i) => [Math.abs(i - 1), i, i + 1 > L - 1 ? L - 2 : i + 1],
    zeros: (i) => [i - 1, i, i + 1 > L - 1 ? -1 : i + 1],
  };
  const exact = (wiring) => {
    let chance = Array(L).fill(1 / L); // the readout sees every position
    for (let layer = 0; layer < DEPTH; layer++) {
      const next = Array(L).fill(0);
      chance.forEach((p, i) => step[wiring](i).forEach((j, _, all) => { if (j >= 0) next[j] += p / all.length; }));
      chance = next;
    }
    return chance;
  };
  let draw01 = random(7);
  const reset = () => { now.arrivals = Array(L).fill(0); now.walkers = now.lost = 0; draw01 = random(7); };
  const walk = (count) => {
    for (let n = 0; n < count; n++) {
      let at = Math.floor(draw01() * L);
      for (let layer = 0; layer < DEPTH && at >= 0; layer++) {
        const inputs = step[now.wiring](at);
        at = inputs[Math.floor(draw01() * inputs.length)];
      }
      now.walkers++;
      if (at < 0) now.lost++;
      else now.arrivals[at]++;
    }
    draw();
  };
  const drawWalk = () => {
    const chance = exact(now.wiring), top = 1.6 / L, X = (i) => 60 + 78 * i, Y = (v) => 260 - 210 * Math.min(v, 1.15 * top) / top;
    drawing.replaceChildren(
      svg("text", { x: 0, y: 16 }, "share of walkers that arrive at each pixel; lines: what the count of paths says"),
      ...now.arrivals.flatMap((n, i) => [
        svg("rect", { x: X(i), y: Y(now.walkers ? n / now.walkers : 0), width: 48,
          height: 260 - Y(now.walkers ? n / now.walkers : 0), fill: "var(--cool)", opacity: 0.75 }),
        svg("line", { x1: X(i) - 8, x2: X(i) + 56, y1: Y(chance[i]), y2: Y(chance[i]), stroke: "var(--hot)", "stroke-width": 2 }),
        svg("text", { x: X(i) + 24, y: 280, "text-anchor": "middle" }, `x${String.fromCharCode(0x2081 + i)}`),
      ]));
    table.replaceChildren(el("div", { class: "controls" },
      choice(root, "Wiring", [["full", "fully connected"], ["reflect", "reflection"], ["circular", "circular"], ["zeros", "zero padding"]],
        now.wiring, (value) => { now.wiring = value; reset(); walk(200); }),
      el("button", { type: "button", onclick: () => walk(200) }, "200 more walkers")));
    const flat = Math.max(...chance) - Math.min(...chance) < 1e-9;
    note.textContent = `${now.walkers} walkers, ${now.lost} lost in the padding. ` +
      (flat ? "Every pixel is as likely as any other: assumption (S) holds."
        : now.wiring === "zeros" ? "Walkers that step over the edge are lost, so pixels at the edge get fewer, and all together less than 1."
          : "Reflection sends walkers back inside: all arrive, but not evenly.");
  };
  const draw = () => (now.mode === "paths" ? drawPaths() : drawWalk());
  live.append(el("div", { class: "controls" },
    choice(root, "Show", [["paths", "paths and gates"], ["walk", "the backward walk"]], now.mode, (value) => {
      now.mode = value;
      if (value === "walk" && !now.walkers) { reset(); walk(200); } else draw();
    })), drawing, table, note);
  draw();
};
