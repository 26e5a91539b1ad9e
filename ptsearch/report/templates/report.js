"use strict";
(async () => {
  const CLOUD = 1500; // ensembles drawn behind the front
  const BEST = 8; // ensembles listed within the limits
  const ROWS = matchMedia("(max-width: 48rem)").matches ? 8 : 20; // samples shown at once

  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  data.scores.forEach((score, place) => Object.assign(score, { place }));
  const scoreOf = Object.fromEntries(data.scores.map((score) => [score.key, score]));
  const shown = (value, digits = 1) =>
    value === null || value === undefined || Number.isNaN(value)
      ? "\u2013"
      : value.toFixed(digits).replace("-", "\u2212");

  /** An element with text and children, never with markup. */
  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  /** The bytes behind the base64 text of a gzipped script element. */
  async function unpack(id) {
    const text = atob(byId(id).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function fill(select, options, chosen) {
    for (const [value, text] of options) select.append(new Option(text, value, false, value === chosen));
  }

  /** Links within the page: in the frame in which MLflow shows it, a browser follows none itself. */
  function followLinks() {
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#"]');
      if (!link) return;
      event.preventDefault();
      const target = byId(link.hash.slice(1));
      target.tabIndex = -1;
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    });
  }

  /* Definitions, on hover and on focus */
  function explainTerms() {
    const tip = byId("tip");
    const hide = () => (tip.hidden = true);
    const show = (event) => {
      const link = event.target.closest && event.target.closest(".term a");
      if (!link) return;
      tip.textContent = byId(link.getAttribute("aria-describedby")).textContent;
      tip.hidden = false;
      const at = link.getBoundingClientRect();
      const below = at.bottom + 8 + tip.offsetHeight < innerHeight;
      tip.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - 8 - tip.offsetHeight)}px`;
      tip.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    };
    document.addEventListener("mouseover", show);
    document.addEventListener("focusin", show);
    document.addEventListener("mouseout", hide);
    document.addEventListener("focusout", hide);
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  }

  /* All ensembles: masks, and one column of scores after another */
  const every = { count: 0, masks: new Uint32Array(), columns: [], kept: new Uint32Array() };

  async function readEnsembles() {
    if (!data.labels.length) return;
    const [masks, columns] = await Promise.all([unpack("masks"), unpack("columns")]);
    every.masks = new Uint32Array(masks);
    every.count = every.masks.length;
    const flat = new Float32Array(columns);
    every.columns = data.scores.map((_, i) => flat.subarray(i * every.count, (i + 1) * every.count));
    every.kept = Uint32Array.from({ length: every.count }, (_, i) => i);
  }

  const nameOf = (i) => data.labels.filter((_, bit) => (every.masks[i] >>> bit) & 1).join(" + ");

  /* Limits */
  const limited = new Map(); // key -> value

  function withinLimits() {
    const tests = [...limited].map(([key, value]) => {
      const { place, higher } = scoreOf[key];
      const column = every.columns[place];
      const limit = Math.fround(value);
      return higher ? (i) => column[i] >= limit : (i) => column[i] <= limit;
    });
    const kept = new Uint32Array(every.count);
    let n = 0;
    for (let i = 0; i < every.count; i++) if (tests.every((test) => test(i))) kept[n++] = i;
    every.kept = kept.slice(0, n);
  }

  /** The most trusted ensembles that are left; of equals the cheapest. */
  function mostTrusted() {
    const keys = ["trust", ...data.scores.filter((s) => !s.higher && s.key !== "refusal_rate").map((s) => s.key)];
    const columns = keys.map((key) => every.columns[scoreOf[key].place]);
    const before = (a, b) => {
      if (columns[0][a] !== columns[0][b]) return columns[0][b] - columns[0][a];
      for (const column of columns.slice(1)) if (column[a] !== column[b]) return column[a] - column[b];
      return a - b;
    };
    const best = [];
    for (const i of every.kept) {
      if (Number.isNaN(columns[0][i]) || (best.length === BEST && before(i, best[BEST - 1]) > 0)) continue;
      best.push(i);
      best.sort(before);
      best.length = Math.min(best.length, BEST);
    }
    return best;
  }

  function showLimits() {
    withinLimits();
    byId("left").textContent = every.kept.length.toLocaleString("en");
    const best = mostTrusted();
    byId("best").hidden = !best.length;
    byId("best").tBodies[0].replaceChildren(
      ...best.map((i) => {
        const cells = data.scores.map((score, k) => {
          const cell = make("td", { className: "n" }, shown(every.columns[k][i], score.digits));
          cell.dataset.label = score.title;
          return cell;
        });
        return make("tr", {}, make("th", { scope: "row" }, nameOf(i)), ...cells);
      }),
    );
    const limits = [...limited].map(([key, value]) => `${scoreOf[key].limit}=${value}`);
    const [search, exported] = data.commands;
    byId("command").textContent = best.length
      ? `${[search, ...limits].join(" ")}\n${exported}`
      : "No ensemble is left: give some limit way.";
    byId("copy").disabled = !best.length;
  }

  function setUpLimits() {
    const after = later(() => {
      showLimits();
      drawFront();
    });
    for (const score of data.scores) {
      const inputs = [byId(`range-${score.key}`), byId(`number-${score.key}`)];
      const [low, high] = ends(every.columns[score.place]);
      const step = 10 ** -score.digits;
      const [from, to] = [Math.floor(low / step) * step, Math.ceil(high / step) * step];
      const loose = score.higher ? from : to;
      const set = (value) => {
        for (const input of inputs) input.value = value.toFixed(score.digits);
        if (score.higher ? value > from : value < to) limited.set(score.key, Number(value.toFixed(score.digits)));
        else limited.delete(score.key);
      };
      for (const input of inputs) {
        Object.assign(input, { min: from.toFixed(score.digits), max: to.toFixed(score.digits), step: step.toFixed(score.digits) });
        input.addEventListener("input", () => {
          if (input.value === "") return;
          set(Number(input.value));
          after();
        });
      }
      set(score.limited ?? loose);
      byId("reset").addEventListener("click", () => {
        set(loose);
        after();
      });
    }
    byId("copy").addEventListener("click", copyCommand);
    showLimits();
  }

  async function copyCommand() {
    try {
      await navigator.clipboard.writeText(byId("command").textContent);
      byId("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("command"));
      byId("copied").textContent = "Selected: press Ctrl+C.";
    }
  }

  function ends(column) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of column) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? [low, high] : [0, 0];
  }

  /** At most once per frame. */
  function later(action) {
    let waiting = false;
    return () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        action();
      });
    };
  }

  /* Figures */
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly reads tags

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["text", "quiet", "line", "page", "card", "accent", "loss", "cloud", "base"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  function layout(extra) {
    const c = colours();
    const axis = { gridcolor: c.line, zeroline: false, linecolor: c.line };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: c.text },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 60, r: 12, t: 12, b: 52 },
      hoverlabel: { bgcolor: c.card, bordercolor: c.base, font: { color: c.text }, align: "left" },
      showlegend: false,
      dragmode: false,
      ...extra,
      xaxis: { ...axis, ...extra.xaxis },
      yaxis: { ...axis, ...extra.yaxis },
    };
  }

  const CONFIG = { responsive: true, displayModeBar: false };
  const titleOf = (score) => `${plain(score.title)} (${score.unit}${score.unit === "%" ? ", search half" : ""})`;

  /** Of the ensembles left, those that none beats in both numbers: from the best in x on. */
  function frontOf(x, y) {
    const [xs, ys] = [every.columns[x.place], every.columns[y.place]];
    const [a, b] = [x.higher ? -1 : 1, y.higher ? -1 : 1];
    const order = every.kept.filter((i) => !Number.isNaN(xs[i]) && !Number.isNaN(ys[i]));
    order.sort((i, j) => a * (xs[i] - xs[j]) || b * (ys[i] - ys[j]));
    let best = Infinity;
    return [...order.filter((i) => b * ys[i] < best && ((best = b * ys[i]), true))];
  }

  function hover(point) {
    const lines = data.scores.map((score) => `${score.title}: ${shown(point.search[score.key], score.digits)} ${score.unit}`);
    const held = point.holdout.trust;
    const margin = point.margin.trust;
    if (held !== undefined) lines.push(`Trust, held out: ${shown(held)}${margin ? ` ± ${shown(margin)}` : ""}`);
    const names = point.name.split(" + ");
    return [point.role && `<b>${plain(point.role)}</b>`, names.map(plain).join("<br>"), "", ...lines.map(plain)].filter((line, i) => line || i > 1).join("<br>");
  }

  function pointsTrace(points, x, y, marker) {
    return {
      x: points.map((p) => p.search[x.key]),
      y: points.map((p) => p.search[y.key]),
      mode: "markers",
      marker,
      hovertemplate: points.map((p) => `${hover(p)}<extra></extra>`),
    };
  }

  function heldOutTrace(points, x, y) {
    const c = colours();
    const value = (p, score) => p.holdout[score.key] ?? (score.unit === "%" ? null : p.search[score.key]);
    const bars = (score) => ({ type: "data", array: points.map((p) => p.margin[score.key] ?? 0), color: c.base, thickness: 1, width: 3 });
    return {
      x: points.map((p) => value(p, x)),
      y: points.map((p) => value(p, y)),
      error_x: bars(x),
      error_y: bars(y),
      mode: "markers",
      marker: { color: c.page, size: 8, line: { color: points.map((p) => (p.kind === "front" ? c.accent : c.base)), width: 1.5 } },
      hovertemplate: points.map((p) => `held out<br>${hover(p)}<extra></extra>`),
    };
  }

  function drawFront() {
    if (!window.Plotly) return;
    const c = colours();
    const [x, y] = [scoreOf[byId("across").value], scoreOf[byId("up").value]];
    const of = (...kinds) => data.points.filter((p) => kinds.includes(p.kind));
    const picked = data.points.filter((p) => p.role);
    const stride = Math.max(1, Math.ceil(every.kept.length / CLOUD));
    const cloud = every.kept.filter((_, i) => i % stride === 0);
    const best = every.count ? frontOf(x, y) : [];
    const which = { picks: [...picked, ...of("dense"), ...data.points.filter((p) => p.kind === "single" && p.holdout.trust !== undefined)], front: data.points, none: [] };
    const held = which[byId("intervals").value].filter((p) => p.holdout.trust !== undefined);
    const at = (score, places) => [...places].map((i) => every.columns[score.place][i]);
    const traces = [
      { x: at(x, cloud), y: at(y, cloud), mode: "markers", marker: { color: c.cloud, size: 4 }, hoverinfo: "skip" },
      { x: at(x, best), y: at(y, best), mode: "lines+markers", line: { color: c.accent, width: 1.5, shape: "hv" }, marker: { color: c.accent, size: 4 }, hovertemplate: best.map((i) => `${nameOf(i).split(" + ").map(plain).join("<br>")}<br>%{x} · %{y}<extra></extra>`) },
      pointsTrace(of("single", "baseline"), x, y, { color: c.base, size: 8, symbol: "triangle-up" }),
      pointsTrace(of("front"), x, y, { color: c.accent, size: 8, opacity: 0.85 }),
      heldOutTrace(held, x, y),
      pointsTrace(of("dense"), x, y, { color: c.text, size: 13, symbol: "star" }),
      pointsTrace(picked, x, y, { color: c.accent, size: 15, symbol: "circle", line: { color: c.text, width: 2 } }),
    ];
    const labels = [...picked, ...of("dense")].map((p, i) => ({
      x: p.search[x.key], y: p.search[y.key], text: plain(p.role || "dense"), font: { color: c.text, size: 12 },
      bgcolor: c.page, borderpad: 2, arrowcolor: c.base, arrowwidth: 1, ax: 24, ay: i % 2 ? 30 : -30, xanchor: "left",
    }));
    Plotly.react("front-plot", traces, layout({ xaxis: { title: { text: titleOf(x) } }, yaxis: { title: { text: titleOf(y) } }, annotations: labels, hovermode: "closest" }), CONFIG);
    byId("front-caption").textContent = `● on the study's front (${of("front").length}) · ▲ single variants · ★ dense · ○ held out · grey: ${stride > 1 ? `every ${stride}th` : "each"} of ${every.kept.length.toLocaleString("en")} ensembles`;
  }

  function setUpFront() {
    const options = data.scores.map((score) => [score.key, `${score.title} (${score.unit})`]);
    fill(byId("across"), options, "memory_gb");
    fill(byId("up"), options, "trust");
    for (const id of ["across", "up", "intervals"]) byId(id).addEventListener("change", drawFront);
  }

  function drawHeat() {
    const c = colours();
    const errors = data.errors[byId("benchmark").value];
    if (!errors) return;
    const names = data.variants.map(plain);
    const trace = {
      type: "heatmap", z: errors, x: names, y: names, zmin: -1, zmax: 1, xgap: 1, ygap: 1,
      colorscale: [[0, c.base], [0.5, c.page], [1, c.accent]],
      colorbar: { thickness: 10, outlinewidth: 0, tickvals: [-1, 0, 1] },
      hovertemplate: "%{y}<br>%{x}<br>%{z:.2f}<extra></extra>",
    };
    const room = 12 + 7 * Math.max(...data.variants.map((name) => name.length)); // for the names
    const height = 120 + room + 20 * names.length;
    const margin = { l: room, r: 12, t: 12, b: room };
    Plotly.react("heat", [trace], layout({ height, margin, xaxis: { showgrid: false, tickangle: -60, dtick: 1 }, yaxis: { showgrid: false, autorange: "reversed", dtick: 1 } }), CONFIG);
  }

  function setUpHeat() {
    fill(byId("benchmark"), Object.keys(data.errors).map((name) => [name, name === "all" ? "all together" : (scoreOf[name]?.title ?? name)]), "all");
    byId("benchmark").addEventListener("change", drawHeat);
  }

  function drawRegret() {
    const regret = byId("regret");
    if (!regret || !regret.open) return;
    const trace = { x: data.missing.map((_, i) => i + 1), y: data.missing, mode: "lines", line: { shape: "hv", color: colours().accent } };
    Plotly.react("regret-plot", [trace], layout({ xaxis: { title: { text: "trial" } }, yaxis: { title: { text: "missing hypervolume (%)" }, rangemode: "tozero" } }), CONFIG);
  }

  function drawAll() {
    drawFront();
    drawHeat();
    drawRegret();
  }

  async function setUpFigures() {
    const code = new TextDecoder().decode(await unpack("plotly"));
    performance.mark("unpacked");
    document.head.append(make("script", { textContent: code }));
    performance.mark("library");
    drawAll();
    byId("regret")?.addEventListener("toggle", drawRegret);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    addEventListener("beforeprint", () => paper(true));
    addEventListener("afterprint", () => paper(false));
  }

  /** The front in light colours and in the width of a sheet, or as before. */
  function paper(printing) {
    document.documentElement.classList.toggle("printing", printing);
    drawFront();
    Plotly.relayout("front-plot", printing ? { width: 690, height: 330 } : { width: null, height: null, autosize: true });
  }

  /* Samples */
  const samples = { found: [], page: 0 };

  function isFound(i, words, voter, benchmark, which) {
    const { rows } = samples;
    const [vote, dense, gold] = [rows[`vote.${voter}`][i], rows["answer.none"][i], rows.gold[i]];
    if (benchmark && rows.benchmark[i] !== benchmark) return false;
    if (which === "differ" && vote === dense) return false;
    if (which === "lost" && !(vote !== gold && dense === gold)) return false;
    if (which === "won" && !(vote === gold && dense !== gold)) return false;
    return !words || samples.text[i].includes(words);
  }

  function find() {
    const words = byId("words").value.trim().toLowerCase();
    const [voter, benchmark, which] = ["voter", "of", "which"].map((id) => byId(id).value);
    samples.found = samples.rows.sample.map((_, i) => i).filter((i) => isFound(i, words, voter, benchmark, which));
    samples.page = 0;
    byId("found").textContent = `${samples.found.length.toLocaleString("en")} of ${samples.rows.sample.length.toLocaleString("en")} samples on this page`;
    showSamples();
  }

  function answerCell(text, gold, label) {
    const cell = make("td", {}, make("span", { className: text === gold ? "right" : "wrong" }, text));
    cell.dataset.label = label;
    return cell;
  }

  /** Everybody's answer and reply to a sample, made when it is opened. */
  function detail(i) {
    const { rows, models } = samples;
    const items = models.map((model) => {
      const answer = rows[`answer.${model}`][i];
      const reply = rows[`reply.${model}`][i];
      const mark = make("span", { className: answer === rows.gold[i] ? "right" : "wrong" }, answer);
      return make("li", {}, make("b", {}, model === "none" ? "dense" : model), " ", mark, ...(reply === null ? [] : [" ", make("q", {}, reply)]));
    });
    return [make("p", { className: "prompt" }, rows.prompt[i]), make("ul", {}, ...items)];
  }

  function sampleRow(i) {
    const { rows } = samples;
    const lines = rows.prompt[i].trim().slice(-160);
    const place = `${rows.benchmark[i]} · ${rows.scenario[i]} · ${rows.half[i]}`;
    const details = make("details", {}, make("summary", {}, lines, make("span", { className: "note" }, place)));
    details.addEventListener("toggle", () => details.open && details.append(...detail(i)), { once: true });
    const gold = make("td", {}, rows.gold[i]);
    gold.dataset.label = "Right answer";
    return make("tr", {}, make("td", {}, details), gold,
      answerCell(rows[`vote.${byId("voter").value}`][i], rows.gold[i], "Vote"),
      answerCell(rows["answer.none"][i], rows.gold[i], "Dense"));
  }

  function showSamples() {
    const { found, page } = samples;
    const start = page * ROWS;
    byId("rows").replaceChildren(...found.slice(start, start + ROWS).map(sampleRow));
    byId("where").textContent = found.length ? `${start + 1} to ${Math.min(start + ROWS, found.length)} of ${found.length}` : "none";
    byId("previous").disabled = page === 0;
    byId("next").disabled = start + ROWS >= found.length;
  }

  function turn(by) {
    samples.page += by;
    showSamples();
  }

  async function setUpSamples() {
    const rows = JSON.parse(new TextDecoder().decode(await unpack("embedded")));
    samples.rows = rows;
    samples.models = Object.keys(rows).filter((name) => name.startsWith("answer.")).map((name) => name.slice(7));
    const searched = ["prompt", "gold", ...Object.keys(rows).filter((name) => name.startsWith("reply."))];
    samples.text = rows.sample.map((_, i) => searched.map((name) => rows[name][i] ?? "").join("\n").toLowerCase());
    const voters = Object.keys(rows).filter((name) => name.startsWith("vote.")).map((name) => [name.slice(5), name.slice(5)]);
    fill(byId("voter"), voters, voters[0]?.[0]);
    fill(byId("of"), [["", "all"], ...[...new Set(rows.benchmark)].map((name) => [name, scoreOf[name]?.title ?? name])], "");
    byId("words").addEventListener("input", later(find));
    for (const id of ["voter", "of", "which"]) byId(id).addEventListener("change", find);
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    find();
  }

  performance.mark("start");
  explainTerms();
  followLinks();
  setUpFront();
  setUpHeat();
  await readEnsembles();
  performance.mark("read");
  if (every.count) setUpLimits();
  performance.mark("limits");
  await setUpSamples();
  performance.mark("samples");
  await setUpFigures();
  performance.mark("figures");
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
