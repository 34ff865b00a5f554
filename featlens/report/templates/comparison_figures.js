"use strict";
// What the figures of a comparison show, from its numbers alone. Names come from files: whatever plotly reads
// goes through featlensPlain, whatever the page reads is set as textContent.
const featlensPlain = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const featlensShort = (text, most) =>
  text.length <= most ? text : text.slice(0, Math.ceil(most / 2) - 1) + "\u2026" + text.slice(1 - Math.floor(most / 2));
// Names of sites that fit: without the dotted ends that all of them share, then, where cutting out their middle would
// make two of them alike, with long words cut ("down_blocks.0.attentions.1.conv" as "dow.0.att.1.conv").
function featlensNames(names, most) {
  if (names.length < 2 || names.every(name => name.length <= most)) return names;
  const shared = at => { let count = 0; while (count < names[0].length && names.every(name => at(name, count) === at(names[0], count))) count++; return count; };
  const head = names[0].slice(0, shared((name, k) => name[k]));
  const start = Math.max(head.lastIndexOf("."), head.lastIndexOf("_"), head.lastIndexOf("/")) + 1;
  if (start > 1) names = names.map(name => "\u2026" + name.slice(start));
  const tail = names[0].slice(names[0].length - shared((name, k) => name[name.length - 1 - k])), end = tail.indexOf(".");
  if (end >= 0 && tail.length - end > 2) names = names.map(name => name.slice(0, name.length - tail.length + end) + (start > 1 ? "" : "\u2026"));
  const alike = list => new Set(list.map(name => featlensShort(name, most))).size < new Set(list).size;
  if (!alike(names)) return names;
  const cut = names.map(name => name.split(".").map((word, k, words) => k < words.length - 1 ? word.split("_")[0].slice(0, 3) : word).join("."));
  return new Set(cut).size < new Set(names).size ? names : cut;
}
const featlensNumber = value =>
  value === null ? "-" : Math.abs(value) >= 100 ? value.toPrecision(4) : (Math.round(value * 1000) / 1000 + 0).toFixed(3);
const featlensP = value => value === null ? "-" : value < 0.001 ? value.toPrecision(2) : value.toFixed(3);

function featlensAt(panel, name, place) {
  return place && panel[name] ? panel[name][place[0]][place[1]][place[2]] : null;
}

// Whether a cell has a null level and does not pass it.
function featlensGrey(spec, panel, place) {
  const p = featlensAt(panel, "p_family", place);
  return p !== null && p > spec.alpha;
}

// Position in sites_b of the best match of a site of A; -1 where every value is undefined.
function featlensBest(panel, level, i) {
  let best = -1;
  panel.value[level][i].forEach((value, j) => {
    const now = best < 0 ? null : panel.value[level][i][best];
    if (value !== null && (now === null || (panel.distance ? value < now : value > now))) best = j;
  });
  return best;
}

// Everything that is known of a cell, line by line, as plain text.
function featlensLines(spec, panel, place) {
  const at = name => featlensAt(panel, name, place);
  const [a, b] = spec.levels[place[0]];
  const sigma = a === b ? "sigma " + spec.told[place[0]][0] : "sigma " + spec.told[place[0]].join(" and ");
  const lines = [panel.a + ": " + panel.sites_a[place[1]], panel.b + ": " + panel.sites_b[place[2]], sigma];
  if (at("value") === null) lines.push(panel.title + ": undefined");
  else {
    let value = panel.title + " " + featlensNumber(at("value"));
    if (at("ci_low") !== null)
      value += ", " + spec.interval + " interval " + featlensNumber(at("ci_low")) + " to " + featlensNumber(at("ci_high"));
    lines.push(value);
    if (at("null") !== null)
      lines.push("null level " + featlensNumber(at("null")) + ", 95 % of permutations " + (panel.distance ? "above " : "below ") + featlensNumber(at("null_high")));
    if (at("p") !== null)
      lines.push("p " + featlensP(at("p")) + ", family-wise " + featlensP(at("p_family")) + ", q " + featlensP(at("q")));
    if (at("p_family") !== null)
      lines.push((featlensGrey(spec, panel, place) ? "not " : "") + (panel.distance ? "below" : "above") + " its null");
    if (at("ceiling") !== null) lines.push("noise ceiling " + featlensNumber(at("ceiling")));
  }
  const flags = panel.flags ? panel.flags[place[0]][place[1]][place[2]] : 0;
  panel.remarks.forEach((remark, bit) => { if (Math.floor(flags / 2 ** bit) % 2) lines.push("warning: " + remark); });
  return lines;
}

function featlensTicks(names, pixels, most, apart) {
  const step = Math.max(1, Math.ceil(names.length * apart / Math.max(pixels, 60)));
  names = featlensNames(names, most);
  const tickvals = names.map((_, index) => index).filter(index => index % step === 0);
  return { tickmode: "array", ticklabeloverflow: "allow", tickvals, ticktext: tickvals.map(index => featlensPlain(featlensShort(names[index], most))) };
}

function featlensMark(row, column) {
  const frame = { type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, layer: "above" };
  return [Object.assign({ line: { color: "#000", width: 5 } }, frame), Object.assign({ line: { color: "#fff", width: 2 } }, frame)];
}

// A heat map; grid gives rows, columns, titles, the place in the panel of each cell, and the marked cell.
function featlensHeat(spec, panel, grid, width) {
  const narrow = width < 480, most = narrow ? 15 : 26, z = [], grey = [], text = [], hatch = { x: [], y: [] };
  grid.rows.forEach((_, row) => {
    const shown = [], left = [], said = [];
    grid.columns.forEach((_, column) => {
      const place = grid.at(row, column), value = featlensAt(panel, "value", place), out = featlensGrey(spec, panel, place);
      shown.push(out ? null : value);
      left.push(out && value !== null ? 1 : null);
      said.push(place ? featlensLines(spec, panel, place).map(featlensPlain).join("<br>") : "");
      if (out && value !== null) {
        hatch.x.push(column - 0.32, column + 0.32, null);
        hatch.y.push(row + 0.32, row - 0.32, null);
      }
    });
    z.push(shown); grey.push(left); text.push(said);
  });
  const longest = names => Math.min(most, Math.max(...featlensNames(names, most).map(name => name.length)));
  const slanted = longest(grid.columns) > 5;
  const below = slanted ? longest(grid.columns) * 5.5 + 48 : 52, left = longest(grid.rows) * 7.6 + (narrow ? 12 : 38);
  const tall = Math.min(620, Math.max(180, (width - left - 14) * grid.rows.length / grid.columns.length));
  // Between very small cells a gap would hide the colours.
  const side = Math.min(tall / grid.rows.length, (width - left - 14) / grid.columns.length), gap = side < 9 ? 0 : 1;
  const shade = featlensInk("--grey"), common = { type: "heatmap", text, hoverinfo: "text", hoverongaps: false, xgap: gap, ygap: gap };
  const data = [
    Object.assign({ z, zmin: panel.range[0], zmax: panel.range[1], colorscale: "Viridis", reversescale: panel.distance,
      colorbar: { orientation: "h", x: 0.5, y: 1.01, yanchor: "bottom", len: 1, thickness: 11, nticks: 6, outlinewidth: 0,
        title: { text: featlensPlain(panel.title) + (panel.distance ? " (bright: close)" : ""), side: "top" } } }, common),
    Object.assign({ z: grey, zmin: 0, zmax: 1, colorscale: [[0, shade], [1, shade]], showscale: false }, common),
    { type: "scatter", mode: "lines", x: hatch.x, y: hatch.y, line: { color: featlensInk("--soft"), width: side < 9 ? 0.5 : 1 }, hoverinfo: "skip", showlegend: false }
  ];
  const axis = { showgrid: false, zeroline: false, ticks: "", fixedrange: narrow };
  const layout = {
    height: tall + below + 58, margin: { l: left, r: 14, t: 58, b: below, pad: 4 }, hovermode: "closest", dragmode: narrow ? false : "zoom", showlegend: false,
    shapes: grid.marked ? featlensMark(...grid.marked) : [],
    xaxis: Object.assign({ range: [-0.5, grid.columns.length - 0.5], title: { text: featlensPlain(featlensShort(grid.titles[1], 44)) }, tickangle: slanted ? -45 : 0 },
      axis, featlensTicks(grid.columns, width - left - 14, most, slanted ? 17 : 34)),
    yaxis: Object.assign({ range: [grid.rows.length - 0.5, -0.5], title: { text: narrow ? "" : featlensPlain(featlensShort(grid.titles[0], 44)) } },
      axis, featlensTicks(grid.rows, tall, most, 15))
  };
  return { data, layout, config: { displayModeBar: !narrow, modeBarButtons: [["toImage", "resetScale2d"]] } };
}

// Outline of the bands between low and high: one closed piece for each run of points that have both.
function featlensBand(x, low, high) {
  const out = { x: [], y: [] };
  for (let start = 0; start < x.length; start++) {
    if (low[start] === null || high[start] === null) continue;
    let stop = start;
    while (stop + 1 < x.length && low[stop + 1] !== null && high[stop + 1] !== null) stop++;
    for (let k = start; k <= stop; k++) { out.x.push(x[k]); out.y.push(high[k]); }
    for (let k = stop; k >= start; k--) { out.x.push(x[k]); out.y.push(low[k]); }
    out.x.push(null); out.y.push(null);
    start = stop;
  }
  return out;
}

// A curve over places of the panel with its band, null level and ceiling, and faint ones beside it.
function featlensCurve(spec, panel, x, places, others, chosen) {
  const take = (name, list) => list.map(place => featlensAt(panel, name, place));
  const mark = featlensInk("--mark"), soft = featlensInk("--soft"), y = take("value", places);
  const band = featlensBand(x, take("ci_low", places), take("ci_high", places));
  const line = (name, color, dash, width) => ({ type: "scatter", mode: "lines", x, y: take(name, places), line: { color, dash, width }, hoverinfo: "skip" });
  const faint = { x: [], y: [] };
  for (const list of others) { faint.x.push(...x, null); faint.y.push(...take("value", list), null); }
  const data = [
    { type: "scatter", mode: "lines", x: faint.x, y: faint.y, line: { color: featlensInk("--line"), width: 1.5 }, hoverinfo: "skip" },
    { type: "scatter", mode: "lines", x: band.x, y: band.y, fill: "toself", fillcolor: mark + "38", line: { width: 0 }, hoverinfo: "skip" },
    line("null", soft, "dash", 1.5), line("null_high", soft, "dot", 1.5), line("ceiling", featlensInk("--warn"), "dashdot", 1.5),
    { type: "scatter", mode: "lines+markers", x, y, line: { color: mark, width: 2 }, hoverinfo: "text",
      text: places.map(place => place ? featlensLines(spec, panel, place).map(featlensPlain).join("<br>") : ""),
      marker: { size: places.map((_, k) => k === chosen ? 13 : places.length > 40 ? 4 : 8), color: mark, symbol: places.map(place => featlensGrey(spec, panel, place) ? "circle-open" : "circle"), line: { width: places.length > 40 ? 1 : 2 } } }
  ];
  const seen = data.flatMap(trace => trace.y).filter(value => value !== null && Number.isFinite(value));
  const low = Math.min(panel.range[0], ...seen), high = Math.max(panel.range[1], ...seen), pad = (high - low) * 0.04;
  return { data, range: [low - pad, high + pad] };
}

function featlensCurveFigure(panel, data, range, xaxis, below, height, left = 62) {
  const layout = { height, showlegend: false, hovermode: "closest", dragmode: false, margin: { l: left, r: 14, t: 12, b: below },
    xaxis: Object.assign({ fixedrange: true, zeroline: false }, xaxis), yaxis: { range, fixedrange: true, zeroline: false, nticks: 6, title: { text: featlensPlain(panel.title), font: { size: 12 }, standoff: 6 } } };
  return { data, layout, config: { displayModeBar: false } };
}

// Same site (or, where names differ, best match) by depth.
function featlensDepth(spec, panel, level, cell, width) {
  const pairs = featlensDepthPairs(panel, level), names = pairs.map(([i]) => panel.sites_a[i]);
  const places = pairs.map(([i, j]) => j < 0 ? null : [level, i, j]);
  const chosen = pairs.findIndex(([i, j]) => i === cell[0] && j === cell[1]);
  const { data, range } = featlensCurve(spec, panel, names.map((_, k) => k), places, [], chosen);
  const most = width < 480 ? 15 : 26, short = featlensNames(names, most), longest = Math.min(most, Math.max(...short.map(name => name.length)));
  const xaxis = Object.assign({ range: [-0.5, names.length - 0.5], tickangle: longest > 5 ? -45 : 0, showgrid: false }, featlensTicks(names, width - 66, most, longest > 5 ? 17 : 34));
  // A slanted label reaches to the left of its tick.
  const reach = Math.max(...short.map((name, k) => Math.min(most, name.length) * 5.5 - (k + 0.5) * (width - 66) / names.length));
  const below = longest > 5 ? longest * 5.5 + 20 : 30, left = longest > 5 ? Math.max(62, reach) : 62;
  return featlensCurveFigure(panel, data, range, xaxis, below, 210 + below, left);
}

function featlensDepthPairs(panel, level) {
  return panel.same.length > 1 ? panel.same : panel.sites_a.map((_, i) => [i, featlensBest(panel, level, i)]);
}

// One pair of sites against sigma, the pairs of one name beside it.
function featlensBySigma(spec, panel, level, cell, width) {
  const places = list => spec.levels.map((_, k) => [k, ...list]), log = spec.levels.every(([a]) => a > 0);
  const x = log ? spec.levels.map(([a]) => a) : spec.levels.map((_, k) => k);
  const { data, range } = featlensCurve(spec, panel, x, places(cell), panel.same.map(places), level);
  const step = Math.ceil(x.length * 44 / Math.max(width - 66, 60)), shown = x.map((_, k) => k).filter(k => k % step === 0);
  const xaxis = { type: log ? "log" : "linear", title: { text: "sigma" }, tickmode: "array", tickvals: shown.map(k => x[k]), ticktext: shown.map(k => spec.told[k][0]), minor: { ticks: "" } };
  const figure = featlensCurveFigure(panel, data, range, xaxis, 46, 256);
  figure.layout.shapes = [{ type: "line", x0: x[level], x1: x[level], yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: featlensInk("--soft"), width: 1 } }];
  return figure;
}

// One pair of sites at every sigma of A and every sigma of B.
function featlensSigmaGrid(spec, panel, level, cell, width) {
  const { a, b, index } = spec.crossed, row = a.findIndex((_, k) => index[k].includes(level));
  const grid = { rows: a, columns: b, titles: ["sigma of " + panel.a, "sigma of " + panel.b], marked: [row, index[row].indexOf(level)],
    at: (k, m) => index[k][m] < 0 ? null : [index[k][m], ...cell] };
  return featlensHeat(spec, panel, grid, width);
}
