"use strict";
// Linked figures of a comparison: one level, two panels and one pair of sites are chosen, and all follow.
function featlensFill(place, headers, rows, caption) {
  const table = document.createElement("table"), line = (tag, cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, column) => {
      const item = document.createElement(tag === "td" && column === 0 ? "th" : tag);
      if (tag === "td" && column === 0) item.scope = "row";
      if (tag === "th") item.scope = "col";
      item.textContent = cell;
      row.append(item);
    });
    return row;
  };
  const title = document.createElement("p"), head = document.createElement("thead"), body = document.createElement("tbody"), scroll = document.createElement("div");
  title.className = "note";
  title.textContent = caption;
  head.append(line("th", headers));
  body.append(...rows.map(row => line("td", row)));
  table.append(head, body);
  table.setAttribute("aria-label", caption);
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.append(table);
  place.append(title, scroll);
}

function featlensComparison(id, spec) {
  const root = document.getElementById(id), state = { level: spec.start.level, panels: spec.start.panels.slice(), cell: spec.start.cell.slice(), hover: null };
  const controls = role => [...document.querySelectorAll('[data-for="' + id + '"][data-role="' + role + '"]')];
  const columns = [...root.querySelectorAll(".column")], part = (c, role) => columns[c].querySelector('[data-part="' + role + '"]');
  const panelOf = c => spec.panels[state.panels[c]], shown = c => state.panels[c] >= 0, plot = (c, kind) => id + "-" + kind + c;
  const kinds = ["map", "depth"].concat(spec.levels.length > 1 ? ["sigma"] : []);
  const follow = spec.crossed ? featlensSigmaGrid : featlensBySigma;

  // Positions of the chosen sites in a panel; a site that the model lacks is replaced by the best match.
  function cellOf(c, cell) {
    const panel = panelOf(c), i = Math.max(panel.sites_a.indexOf(cell[0]), 0), j = panel.sites_b.indexOf(cell[1]);
    return [i, j >= 0 ? j : Math.max(featlensBest(panel, state.level, i), 0)];
  }
  const chosen = c => cellOf(c, state.hover ? state.hover.cell : state.cell);
  const drawings = {
    map: (c, width) => {
      const panel = panelOf(c), level = state.level;
      const grid = { rows: panel.sites_a, columns: panel.sites_b, titles: ["site of " + panel.a, "site of " + panel.b], at: (i, j) => [level, i, j], marked: chosen(c) };
      return featlensHeat(spec, panel, grid, width);
    },
    depth: (c, width) => featlensDepth(spec, panelOf(c), state.level, chosen(c), width),
    sigma: (c, width) => follow(spec, panelOf(c), state.level, chosen(c), width)
  };

  function draw(c, kind) {
    const name = plot(c, kind), place = document.getElementById(name);
    featlensDrawn.set(name, () => {
      const made = drawings[kind](c, place.clientWidth);
      place.style.height = made.layout.height + "px";
      return made;
    });
    featlensDraw(name);
    if (!place.dataset.linked) { place.dataset.linked = "yes"; listen(c, kind, place); }
  }

  // Names of the sites at a point of a figure.
  function sitesAt(c, kind, point) {
    const panel = panelOf(c);
    if (kind === "map") return [panel.sites_a[Math.round(point.y)], panel.sites_b[Math.round(point.x)]];
    const pair = featlensDepthPairs(panel, state.level)[Math.round(point.x)];
    return pair && pair[1] >= 0 ? [panel.sites_a[pair[0]], panel.sites_b[pair[1]]] : null;
  }

  function listen(c, kind, place) {
    if (kind === "sigma") {
      place.on("plotly_click", event => {
        const point = event.points[0];
        if (spec.crossed) choose({ level: spec.crossed.index[Math.round(point.y)][Math.round(point.x)] });
        else choose({ level: point.pointIndex });
      });
      return;
    }
    place.on("plotly_click", event => {
      const cell = sitesAt(c, kind, event.points[0]);
      if (cell) choose({ cell });
    });
    place.on("plotly_hover", event => {
      const cell = sitesAt(c, kind, event.points[0]);
      if (cell) hover({ cell, from: place.id });
    });
    place.on("plotly_unhover", () => hover(null));
  }

  // The figure under the pointer stays as it is: redrawing it would take its label away.
  let waiting = false;
  function hover(what) {
    const from = (what || state.hover || {}).from;
    state.hover = what;
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      for (const c of [0, 1]) for (const kind of kinds) {
        const name = plot(c, kind);
        if (!shown(c) || name === from) continue;
        if (kind === "map") Plotly.relayout(name, { shapes: featlensMark(...chosen(c)) });
        else featlensDraw(name);
      }
    }, 20);
  }

  function tell(c) {
    const panel = panelOf(c), cell = cellOf(c, state.cell), lines = featlensLines(spec, panel, [state.level, ...cell]);
    part(c, "what").textContent = panel.title + ", " + panel.a + " (rows) with " + panel.b + " (columns), sigma " + spec.said[state.level];
    part(c, "cell").textContent = "Marked: " + lines.join("; ") + ".";
    part(c, "grey").textContent = panel.grey;
    part(c, "depth").textContent = panel.curve;
    if (spec.levels.length > 1) part(c, "sigma").textContent = spec.crossed
      ? "The marked pair of sites at every sigma of both models."
      : "The marked pair of sites against sigma, drawn as above; pale: all pairs of sites of one name.";
    const numbers = part(c, "numbers");
    if (numbers.open) count(c, numbers);
  }

  // The numbers behind the figures of a column, as tables.
  function count(c, numbers) {
    const panel = panelOf(c), level = state.level, place = document.createElement("div"), [i, j] = cellOf(c, state.cell);
    const star = at => featlensNumber(featlensAt(panel, "value", at)) + (featlensGrey(spec, panel, at) ? " n.s." : "");
    featlensFill(place, ["site of " + panel.a].concat(panel.sites_b), panel.sites_a.map((name, row) => [name].concat(panel.sites_b.map((_, column) => star([level, row, column])))),
      panel.title + " at sigma " + spec.said[level] + ", columns: sites of " + panel.b + ". n.s.: " + panel.not + ".");
    const headers = [spec.interval + " interval", "null level", "null " + (panel.distance ? "5" : "95") + " %", "p", "p (family)", "q", "ceiling"];
    const details = at => [featlensNumber(featlensAt(panel, "ci_low", at)) + " to " + featlensNumber(featlensAt(panel, "ci_high", at)), ...["null", "null_high"].map(name => featlensNumber(featlensAt(panel, name, at)))]
      .concat(["p", "p_family", "q"].map(name => featlensP(featlensAt(panel, name, at))), featlensNumber(featlensAt(panel, "ceiling", at)));
    const pairs = featlensDepthPairs(panel, level).filter(pair => pair[1] >= 0);
    featlensFill(place, ["site of " + panel.a, "site of " + panel.b, "value"].concat(headers),
      pairs.map(([row, column]) => [panel.sites_a[row], panel.sites_b[column], star([level, row, column])].concat(details([level, row, column]))), "By depth, at sigma " + spec.said[level]);
    featlensFill(place, ["sigma", "value"].concat(headers), spec.said.map((text, k) => [text, star([k, i, j])].concat(details([k, i, j]))),
      "By sigma: " + panel.sites_a[i] + " of " + panel.a + " with " + panel.sites_b[j] + " of " + panel.b);
    numbers.lastElementChild.replaceChildren(...place.childNodes);
  }

  // Best matches: the tables of all panels follow the level; those of other panels are only printed.
  function match() {
    for (const item of document.querySelectorAll('[data-matches="' + id + '"]')) {
      const k = Number(item.dataset.panel), panel = spec.panels[k];
      item.classList.toggle("other", k !== state.panels[0]);
      item.querySelector("h3").textContent = panel.label + ", sigma " + spec.said[state.level];
      const rows = spec.matches[k][state.level], body = item.querySelector("tbody");
      [...body.rows].forEach((row, r) => [...row.cells].forEach((cell, column) => { cell.textContent = rows[r][column]; }));
    }
  }

  function options(select, names, value) {
    if (select.options.length !== names.length || names.some((name, k) => select.options[k].value !== name))
      select.replaceChildren(...names.map(name => { const option = document.createElement("option"); option.value = name; option.textContent = name; return option; }));
    select.value = value;
  }

  function choose(change) {
    const before = state.panels.join();
    if ("level" in change && !(change.level >= 0)) return;
    Object.assign(state, change, { hover: null });
    root.classList.toggle("single", !shown(1));
    columns[1].hidden = !shown(1);
    const panels = [0, 1].filter(shown).map(panelOf), union = key => [...new Set(panels.flatMap(panel => panel[key]))];
    const first = cellOf(0, state.cell);
    if (!union("sites_a").includes(state.cell[0]) || !union("sites_b").includes(state.cell[1]))
      state.cell = [panels[0].sites_a[first[0]], panels[0].sites_b[first[1]]];
    for (const side of ["a", "b"]) for (const select of controls("site_" + side)) options(select, union("sites_" + side), state.cell[side === "a" ? 0 : 1]);
    for (const item of controls("level")) item.value = state.level;
    for (const c of [0, 1]) for (const item of controls("panel" + c)) item.value = state.panels[c];
    if (spec.crossed) {
      const row = spec.crossed.index.findIndex(list => list.includes(state.level)), column = spec.crossed.index[row].indexOf(state.level);
      for (const item of controls("sigma_a")) item.value = row;
      for (const item of controls("sigma_b")) item.value = column;
    }
    for (const item of document.querySelectorAll('input[type="range"][data-for="' + id + '"]')) item.setAttribute("aria-valuetext", "sigma " + spec.said[state.level]);
    for (const c of [0, 1]) {
      if (!shown(c)) { for (const kind of kinds) featlensDrawn.delete(plot(c, kind)); continue; }
      tell(c);
      for (const kind of kinds) draw(c, kind);
    }
    match();
    if (before !== state.panels.join()) for (const name of featlensDrawn.keys()) if (name.startsWith(id + "-")) Plotly.Plots.resize(name);
  }

  // A slider that is dragged asks more often than large maps can be drawn.
  let asked = null;
  const soon = change => {
    if (asked === null) setTimeout(() => { const last = asked; asked = null; choose(last); }, 20);
    asked = change;
  };
  for (const item of controls("level")) item.addEventListener("input", () => soon({ level: Number(item.value) }));
  for (const c of [0, 1]) for (const item of controls("panel" + c)) item.addEventListener("change", () => {
    const panels = state.panels.slice();
    panels[c] = Number(item.value);
    choose({ panels });
  });
  for (const [k, side] of [[0, "a"], [1, "b"]]) {
    for (const item of controls("site_" + side)) item.addEventListener("change", () => {
      const cell = state.cell.slice();
      cell[k] = item.value;
      choose({ cell });
    });
    for (const item of controls("sigma_" + side)) item.addEventListener("input", () => {
      const at = [0, 1].map(m => Number(controls("sigma_" + "ab"[m])[0].value)), index = spec.crossed.index;
      at[k] = Number(item.value);
      const other = at[1 - k];
      // Not every sigma of A need have been compared with every sigma of B.
      const list = k === 0 ? index[at[0]] : index.map(row => row[at[1]]);
      soon({ level: list[other] >= 0 ? list[other] : Math.max(...list) });
    });
  }
  for (const c of [0, 1]) part(c, "numbers").addEventListener("toggle", event => { if (event.target.open && shown(c)) count(c, event.target); });
  choose({});
}
