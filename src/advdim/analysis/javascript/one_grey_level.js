// One image, its perturbation and the sum of the two; what the network makes of it, and what it costs.
const figure = (root, live, data) => {
  const { el, svg, choice, range, bytes, signs } = kit;
  const now = { image: "photograph", side: "64", readout: "fc", sign: "gradient", eps: data.shown };

  // The photograph is stored at 64 pixels and averaged; the digit at 8, and its pixels are copied.
  const pixels = (name, side) => {
    const { channels, side: stored, data: packed } = data.images[name];
    const from = bytes(packed), out = new Float64Array(side * side * channels), step = stored / side;
    for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) for (let c = 0; c < channels; c++) {
      let sum = 0, n = 0;
      for (let i = Math.floor(y * step); i < Math.max((y + 1) * step, Math.floor(y * step) + 1); i++)
        for (let j = Math.floor(x * step); j < Math.max((x + 1) * step, Math.floor(x * step) + 1); j++) {
          sum += from[c * stored * stored + i * stored + j];
          n++;
        }
      out[c * side * side + y * side + x] = sum / n;
    }
    return out;
  };
  const paint = (canvas, values, side, channels) => {
    canvas.width = canvas.height = side;
    const area = canvas.getContext("2d"), image = area.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(values[(channels === 3 ? c : 0) * side * side + i]);
      image.data[4 * i + 3] = 255;
    }
    area.putImageData(image, 0, 0);
  };

  const canvases = ["the image", "20 times the perturbation", "the attacked image"].map((words) => {
    const canvas = el("canvas", { role: "img", "aria-label": words });
    return { canvas, panel: el("div", {}, canvas, el("p", {}, words)) };
  });
  const bars = svg("svg", { viewBox: "0 0 250 190", role: "img", "aria-label": "probabilities of the ten classes" });
  const plot = svg("svg", { viewBox: "0 0 380 190", role: "img", "aria-label": "loss against the size of the attack" });
  const note = el("p", { class: "note", "aria-live": "polite" });

  const draw = () => {
    const side = +now.side, { channels } = data.images[now.image];
    const one = data.cases[now.image][now.side];
    const own = one[now.readout], run = own[now.sign];
    const sign = signs(now.sign === "random" ? one.random : own.signs, side * side * channels);
    const image = pixels(now.image, side);
    paint(canvases[0].canvas, image, side, channels);
    paint(canvases[1].canvas, image.map((_, i) => 127.5 + 20 * now.eps * sign[i]), side, channels);
    paint(canvases[2].canvas, image.map((v, i) => v + now.eps * sign[i]), side, channels);

    const share = bytes(run.shares).slice(10 * now.eps, 10 * now.eps + 10), label = own.label;
    const best = share.indexOf(Math.max(...share));
    bars.replaceChildren(svg("text", { x: 0, y: 14 }, "what the network says"), ...[...share].flatMap((p, k) => [
      svg("rect", { x: 60, y: 25 + 16 * k, width: Math.max(1, p * 180 / 255), height: 11,
        fill: k === label ? "var(--cool)" : k === best ? "var(--hot)" : "var(--soft)" }),
      svg("text", { x: 52, y: 35 + 16 * k, "text-anchor": "end", "font-weight": k === best ? 700 : 400 }, `class ${k}`),
    ]));

    const slope = now.sign === "gradient" ? own.slope : 0, first = run.loss[0];
    const top = Math.max(1, ...run.loss.map((v) => v - first), 16 * own.slope * 0.6);
    const X = (eps) => 42 + 20.5 * eps, Y = (v) => 160 - 125 * Math.min(v, 1.08 * top) / top;
    const tick = 10 ** Math.floor(Math.log10(top)), by = top / tick > 5 ? 2 * tick : top / tick > 2 ? tick : tick / 2;
    const ticks = Array.from({ length: 1 + Math.floor(top / by) }, (_, i) => i * by);
    const end = slope ? Math.min(16, 1.08 * top / slope) : 16;
    plot.replaceChildren(...[
      svg("text", { x: 0, y: 14 }, "rise of the loss"),
      ticks.map((v) => svg("g", {}, svg("line", { x1: 42, x2: 370, y1: Y(v), y2: Y(v), stroke: "var(--faint)" }),
        svg("text", { x: 36, y: Y(v) + 4, "text-anchor": "end" }, `${+v.toPrecision(2)}`))),
      [0, 4, 8, 12, 16].map((e) => svg("text", { x: X(e), y: 176, "text-anchor": "middle" }, `${e}`)),
      svg("text", { x: 206, y: 192, "text-anchor": "middle" }, "grey levels per pixel"),
      svg("line", { x1: X(0), y1: Y(0), x2: X(end), y2: Y(end * slope), stroke: "currentColor", "stroke-dasharray": "5 4" }),
      svg("polyline", { points: run.loss.map((v, e) => `${X(e)},${Y(v - first)}`).join(" "), fill: "none",
        stroke: "var(--hot)", "stroke-width": 2 }),
      svg("circle", { cx: X(now.eps), cy: Y(run.loss[now.eps] - first), r: 5, fill: "var(--hot)" }),
    ].flat());
    const rise = run.loss[now.eps] - first, law = slope * now.eps;
    const mean = data.means[now.image][now.readout];
    note.textContent = (now.sign === "gradient"
      ? `The loss rises by ${rise.toFixed(2)}; to first order (dashed) by ${law.toFixed(2)}. `
      : `Random signs of the same size change the loss by ${rise.toFixed(2)}. `) +
      (best === label ? `The class stays ${label}. ` : `The class changes from ${label} to ${best}. `) +
      "First-order damage of one grey level, mean over " + data.seeds + " networks, at 8, 16, 32, 64 pixels a side: " +
      mean.map((v) => v.toFixed(3)).join(", ") + ".";
  };

  const set = (name) => (value) => { now[name] = value; draw(); };
  live.append(
    el("div", { class: "controls" },
      choice(root, "Image", [["photograph", "photograph"], ["digit", "digit"]], now.image, set("image")),
      choice(root, "Side", ["8", "16", "32", "64"].map((s) => [s, s]), now.side, set("side")),
      choice(root, "Last layer", [["fc", "fully connected"], ["average", "average"]], now.readout, set("readout")),
      choice(root, "Signs", [["gradient", "of the gradient"], ["random", "at random"]], now.sign, set("sign")),
      range("Size", [0, 16, 1], now.eps, (e) => `${e}/255`, set("eps"))),
    el("div", { class: "panels" }, canvases.map((c) => c.panel)),
    el("div", { class: "panels two" }, bars, plot), note);
  draw();
};
