"use strict";
// Both models in one plane: circles and diamonds, coloured by label; the two points of a sample can be joined.
const featlensHues = ["#4477aa", "#ee6677", "#228833", "#ccaa22", "#66ccee", "#aa3377", "#ee7733", "#44aa99", "#8877cc", "#997755"];

function featlensEmbedding(id, spec) {
  const root = document.getElementById(id), place = document.getElementById(id + "-plot"), part = role => root.querySelector('[data-part="' + role + '"]');
  const control = role => root.querySelector('[data-role="' + role + '"]');
  const entry = () => spec.entries[Number(control("entry").value)];

  function kinds(labels) {
    const known = labels === null ? [null] : [...new Set(labels)].sort((a, b) => a - b);
    const colour = k => known.length <= featlensHues.length ? featlensHues[k] : "hsl(" + Math.round(k * 137.5) % 360 + " 60% 52%)";
    return known.length > spec.most ? null : known.map((label, k) => ({ label, colour: labels === null ? null : colour(k) }));
  }

  function points(now, side, coordinates, narrow) {
    const name = [now.a, now.b][side], symbol = ["circle", "diamond"][side], groups = kinds(now.labels);
    const said = k => featlensPlain(name) + "<br>sample " + now.ids[k] + (now.labels === null ? "" : "<br>label " + now.labels[k]);
    const trace = (list, marker, extra) => Object.assign({ type: "scatter", mode: "markers", x: list.map(k => coordinates[side][0][k]), y: list.map(k => coordinates[side][1][k]), text: list.map(said), hoverinfo: "text",
      marker: Object.assign({ symbol, size: narrow ? 5 : 7, opacity: 0.8, line: { width: side ? 0.6 : 0, color: featlensInk("--ink") } }, marker) }, extra);
    const all = now.ids.map((_, k) => k);
    if (groups === null) return [trace(all, { color: now.labels, colorscale: "Viridis", showscale: side === 0, colorbar: { title: { text: "label" }, thickness: 11 } }, { showlegend: false })];
    return groups.map(({ label, colour }) => {
      const list = label === null ? all : all.filter(k => now.labels[k] === label);
      const own = colour || [featlensInk("--mark"), featlensInk("--warn")][side];
      return trace(list, { color: own }, { name: String(label), legendgroup: String(label), showlegend: label !== null && side === 0 });
    });
  }

  featlensDrawn.set(place.id, () => {
    const now = entry(), coordinates = now.points[control("method").value], narrow = place.clientWidth < 480, data = [];
    if (control("joined").checked) {
      const x = [], y = [];
      now.ids.forEach((_, k) => { x.push(coordinates[0][0][k], coordinates[1][0][k], null); y.push(coordinates[0][1][k], coordinates[1][1][k], null); });
      data.push({ type: "scatter", mode: "lines", x, y, line: { color: featlensInk("--soft"), width: 0.5 }, opacity: 0.6, hoverinfo: "skip", showlegend: false });
    }
    for (const side of [0, 1]) data.push(...points(now, side, coordinates, narrow));
    const height = narrow ? 460 : 620, axis = { showticklabels: false, ticks: "", zeroline: false, fixedrange: narrow };
    place.style.height = height + "px";
    return { data, layout: { height, hovermode: "closest", dragmode: narrow ? false : "zoom", margin: { l: 12, r: 12, t: 12, b: 12 },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", itemsizing: "constant", tracegroupgap: 0 },
      xaxis: Object.assign({}, axis), yaxis: Object.assign(control("method").value === "pca" ? { scaleanchor: "x", scaleratio: 1 } : {}, axis) }, config: { displayModeBar: !narrow, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] } };
  });

  function count(numbers) {
    const now = entry(), method = control("method").value, coordinates = now.points[method], div = document.createElement("div");
    const rows = now.ids.map((sample, k) => [String(sample), now.labels === null ? "-" : String(now.labels[k])].concat([0, 1].flatMap(side => [0, 1].map(axis => featlensNumber(coordinates[side][axis][k])))));
    featlensFill(div, ["sample", "label", now.a + ", axis 1", now.a + ", axis 2", now.b + ", axis 1", now.b + ", axis 2"], rows, "Points of the picture above");
    numbers.lastElementChild.replaceChildren(...div.childNodes);
  }

  function choose() {
    const now = entry(), methods = Object.keys(now.points), select = control("method");
    for (const option of select.options) option.disabled = !methods.includes(option.value);
    if (!methods.includes(select.value)) select.value = methods[0];
    part("key").textContent = "Circles: " + now.a + ", " + now.site_a + ". Diamonds: " + now.b + ", " + now.site_b + ". " + (now.labels === null ? "" : "Colour: label. ") + now.said;
    part("facts").textContent = now.facts[select.value];
    featlensDraw(place.id);
    if (part("numbers").open) count(part("numbers"));
  }

  for (const role of ["entry", "method", "joined"]) control(role).addEventListener("change", choose);
  part("numbers").addEventListener("toggle", event => { if (event.target.open) count(event.target); });
  choose();
}
