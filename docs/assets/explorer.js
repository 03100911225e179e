// Draws what the build has computed: looks up, and computes nothing itself.
(() => {
  const form = document.getElementById("explorer-form");
  if (!form) return;
  const table = JSON.parse(document.getElementById("explorer-data").textContent);
  const at = (name) => document.getElementById(`explorer-${name}`);
  const none = table.thresholds.length - 1;
  const left = 46, right = 350, top = 14, bottom = 232;

  const say = (x) => (x === null ? "none" : String(Number(x.toPrecision(3))));
  const scale = (low, high, from, to, log) => {
    const f = log ? Math.log10 : (x) => x;
    return (x) => from + ((f(x) - f(low)) / (f(high) - f(low))) * (to - from);
  };

  function node(parent, name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  // Consecutive points that have numbers; where there is none the line has a gap.
  function path(xs, ys, x, y) {
    let drawn = "", pen = "M";
    ys.forEach((value, i) => {
      if (value === null || xs[i] === null) return void (pen = "M");
      drawn += `${pen}${x(xs[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    return drawn;
  }

  function axes(svg, x, y, xTicks, yTicks, xName, yName) {
    svg.replaceChildren();
    for (const tick of xTicks) {
      node(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom });
      node(svg, "text", { x: x(tick), y: bottom + 15, "text-anchor": "middle" }, say(tick));
    }
    for (const tick of yTicks) {
      node(svg, "line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) });
      node(svg, "text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, say(tick));
    }
    node(svg, "text", { x: (left + right) / 2, y: 264, "text-anchor": "middle" }, xName);
    node(svg, "text", { x: 4, y: 10 }, yName);
  }

  function drawRisk(noise, b, c) {
    const svg = at("risk"), clipped = noise.risk[b][c], plain = noise.risk[b][none];
    const all = noise.risk[b].flat().filter((r) => r !== null);
    const low = 10 ** Math.floor(Math.log10(Math.min(...all)));
    const x = scale(0, 20, left, right), y = scale(low, 2, bottom, top, true);
    const ticks = [0.001, 0.01, 0.1, 1].filter((tick) => tick >= low);
    axes(svg, x, y, [0, 5, 10, 15, 20], ticks, "steps / dimension", "excess risk");
    node(svg, "path", { class: "plain", d: path(table.times, plain, x, y) });
    node(svg, "path", { class: "clipped", d: path(table.times, clipped, x, y) });
    node(svg, "text", { class: "clipped-name", x: right, y: top + 12, "text-anchor": "end" },
      c === none ? "no clip" : `clipped at ${say(table.thresholds[c])}`);
    if (c !== none) {
      node(svg, "text", { class: "plain-name", x: right, y: top + 28, "text-anchor": "end" },
        plain[0] === null ? "no clip: no such risk" : "no clip (dashed)");
    }
    return [clipped.at(-1), plain.at(-1)];
  }

  function drawCriterion(noise, level, c) {
    const svg = at("criterion"), values = noise.criterion[level];
    const most = Math.max(1.2, ...noise.criterion.flat());
    const x = scale(0.1, 10, left, right, true), y = scale(0, most, bottom, top);
    const step = most > 3 ? 1 : 0.5, ticks = [];
    for (let tick = 0; tick <= most; tick += step) ticks.push(tick);
    const name = noise.relative ? "share of the best threshold's worth" : "criterion";
    axes(svg, x, y, [0.1, 0.3, 1, 3, 10], ticks, "threshold on the residual", name);
    node(svg, "line", { class: "one", x1: left, x2: right, y1: y(1), y2: y(1) });
    const finite = table.thresholds.slice(0, none);
    node(svg, "path", { class: "clipped", d: path(finite, values.slice(0, none), x, y) });
    if (c !== none) {
      node(svg, "circle", { class: "dot", r: 5, cx: x(finite[c]), cy: y(values[c]) });
    }
    return values[c];
  }

  function verdict(noise, value, level, c) {
    const risk = say(table.risks[level]);
    if (noise.relative) {
      return c === none ? "Noise without a variance: any clip beats none." :
        `At the risk ${risk} this threshold has ${say(value)} of the best one's worth.`;
    }
    if (c === none) return "Without a clip the criterion is 1.";
    const word = value > 1.005 ? "clipping helps" : value < 0.995 ? "clipping harms" :
      "clipping neither helps nor harms";
    return `At the risk ${risk} the criterion is ${say(value)}: ${word}.`;
  }

  function draw() {
    const noise = table.noises[Number(at("noise").value)];
    const [c, b, level] = ["threshold", "batch", "level"].map((n) => Number(at(n).value));
    const values = { threshold: table.thresholds[c], batch: table.batches[b],
      level: table.risks[level] };
    for (const [name, value] of Object.entries(values)) {
      at(`${name}-value`).textContent = say(value);
      at(name).setAttribute("aria-valuetext", say(value));
    }
    const [end, plain] = drawRisk(noise, b, c);
    const value = drawCriterion(noise, level, c);
    const other = plain === null ? "no number: the noise has no variance" : say(plain);
    const risks = c === none ? `No clip: risk after 20 steps a dimension ${other}.` :
      `Clip at ${say(values.threshold)}: risk after 20 steps a dimension ${say(end)}` +
      `, unclipped ${other}.`;
    const text = `${risks} ${verdict(noise, value, level, c)}`;
    at("text").textContent = text;
    at("risk").setAttribute("aria-label", `The excess risk against steps. ${risks}`);
    at("criterion").setAttribute("aria-label",
      `The criterion against the threshold. ${verdict(noise, value, level, c)}`);
  }

  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  draw();
})();
