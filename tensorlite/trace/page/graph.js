/* The graph of the program: ops and modules in layers from bottom to top, frames from left to right.

   Drawn by cytoscape where layout.js puts things, with the words of labels.js and the look of
   look.js. A step changes classes and labels alone; only opening or closing a module lays out
   anew. */
(() => {
  "use strict";
  const Flow = window.Flow;
  const { tape, store } = Flow;
  const { tensors, ops, events } = tape;
  const { moduleOf, consumers } = Flow.layout;
  const { shapeOf, nameOf, heading, outputsOf, meets, meetingHere, nodeAt, edgeAt, titleOf } = Flow.labels;
  const { look, FONT } = Flow.look;

  const SMALL = 40; // programs of at most so many ops start with everything open
  const LEGIBLE = 0.75; // the zoom at which all can be read
  const FAR = 0.6; // below it only names are shown, and larger
  const WHOLE = 0.3; // the first view of a whole program zooms out no further

  const LONG = 2000; // an edge from a parameter to an op that is farther off is not dashed

  let cy = null;
  let drawn = null; // what layout.js made, its nodes by id, and what each element shows at present
  let parts = {}; // the elements of the page around the canvas
  let clicked = null; // the node by which a module was just opened or closed
  let far = false; // whether the view is from so far that only names are shown

  // ---- sizes of texts --------------------------------------------------------------------------

  const pen = document.createElement("canvas").getContext("2d");
  function textWidth(text, pixels, weight = "normal") {
    pen.font = `${weight} ${pixels}px ${parts.sans}`;
    return pen.measureText(text).width;
  }

  function measure(node) {
    const t = node.kind === "op" ? ops[node.op].output : node.tensor;
    const count = node.ops.length;
    const first = node.kind === "module" ? `${count} of ${count} ops`
      : node.kind === "op" && moduleOf[node.op].single ? ops[node.op].op : shapeOf(t);
    const caption = `${first} · ∇ 0.0123${
      node.kind === "module" && outputsOf(node).length === 2 ? ", 0.0123" : ""}${
      meets.has(t) ? " so far" : ""}`;
    return Math.ceil(Math.max(84, 26 + textWidth(nameOf(node), FONT.name, 600),
      20 + textWidth(caption, FONT.caption, 600)));
  }

  function titleWidth(module) {
    const lines = [heading(module), `${module.ops.length} ops · ∇ 0.0123`];
    return 16 + Math.ceil(Math.max(...lines.map((line) => textWidth(line, FONT.caption + 1, 600))));
  }

  // ---- drawing ---------------------------------------------------------------------------------

  /* Points as cytoscape wants them: shares along the line between the nodes, and distances off it. */
  function segments({ from, to, bends }) {
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = Math.hypot(dx, dy) || 1;
    const along = bends.map((p) => ((p.x - from.x) * dx + (p.y - from.y) * dy) / length ** 2);
    const off = bends.map((p) => ((p.y - from.y) * dx - (p.x - from.x) * dy) / length);
    return { weights: along, distances: off };
  }

  /* The open modules around a node. */
  function above(node) {
    const found = [];
    for (let m = node.parent; m; m = m.parent) found.push(m);
    return found;
  }

  /* Where an edge leaves and enters its nodes, from their centres: sideways, or in line with its
     first and last bend. */
  function endsOf({ from, to, kind, bends, side }) {
    if (side) {
      const [first, last] = bends.length ? [bends[0], bends.at(-1)] : [from, to];
      return [{ x: side * from.width / 2, y: first.y - from.y },
        { x: -side * to.width / 2, y: last.y - to.y }];
    }
    if (!bends.length) return null;
    const up = from.y > to.y ? 1 : -1;
    const start = kind === "parameter" ? { x: from.width / 2, y: 0 }
      : { x: bends[0].x - from.x, y: -up * from.height / 2 };
    return [start, { x: bends.at(-1).x - to.x, y: up * to.height / 2 }];
  }

  function draw() {
    const plan = Flow.layout.layout(store.state.open, measure, titleWidth);
    const nodes = new Map([...plan.nodes, ...plan.parameters].map((node) => [node.id, node]));
    nodes.forEach((node) => {
      node.outputs = outputsOf(node);
      node.frame = typeof node.lane === "number" ? node.lane : null;
    });
    plan.boxes.forEach((box) => {
      box.kind = "module";
      box.frame = typeof box.lane === "number" ? box.lane : null;
      box.outputs = outputsOf(box);
    });
    const css = getComputedStyle(parts.host);
    const elements = [];
    for (const box of plan.boxes) {
      let depth = 1;
      for (let m = box.module.parent; m; m = m.parent) depth += 1;
      const [x, width] = [(box.left + box.right) / 2, box.right - box.left];
      elements.push({ data: { id: box.id, depth, width, height: box.bottom - box.top, label: "" },
        position: { x, y: (box.top + box.bottom) / 2 }, classes: "box" });
      elements.push({ data: { id: `title ${box.id}`, width: titleWidth(box.module), height: 36,
        label: "" }, position: { x, y: box.top + 21 }, classes: "title" });
    }
    for (const node of nodes.values()) {
      const { id, x, y, width, height } = node;
      const name = nameOf(node);
      const room = FONT.name * (width - 14) / textWidth(name, FONT.name, 600);
      elements.push({ data: { id, width, height, label: name, far: Math.min(FONT.far, room) },
        position: { x, y } });
      if (node.kind !== "parameter") {
        elements.push({ data: { id: `caption ${id}`, width: width - 8, height: 18, label: "" },
          position: { x, y: y + 11 }, classes: "caption" });
      }
      if (node.outputs.some((t) => meets.has(t))) {
        const at = node.kind === "parameter" ? { x: x + width / 2, y } : { x, y: y - height / 2 - 8 };
        elements.push({ data: { id: `plus ${id}`, width: 20, height: 20, label: "+" },
          position: at, classes: "plus" });
      }
    }
    for (const edge of plan.edges) {
      const data = { id: edge.id, source: edge.from.id, target: edge.to.id, label: "", width: 1.5,
        ink: css.getPropertyValue(`--${edge.kind}`).trim() };
      edge.fixed = [];
      if (edge.bends.length) {
        edge.fixed.push("bent");
        Object.assign(data, segments(edge));
      }
      const length = Math.abs(edge.from.x - edge.to.x) + Math.abs(edge.from.y - edge.to.y);
      if (edge.kind === "parameter" && length > LONG) edge.fixed.push("long");
      const outOf = above(edge.from).filter((m) => !above(edge.to).includes(m)).length;
      if (outOf && !edge.side) {
        edge.fixed.push("leaving");
        data.offset = outOf * Flow.layout.TITLE + Flow.layout.GAP / 2;
      }
      const ends = endsOf(edge);
      if (ends) [data.leave, data.enter] = ends.map(({ x, y }) => `${x}px ${y}px`);
      if (edge.from.kind !== "parameter" && edge.from.outputs.some((t) => meets.has(t))
        && (!ends || Math.abs(ends[0].x) < 14)) {
        data.room = 18; // for the plus
        if (data.offset) data.offset -= data.room;
      }
      elements.push({ data, classes: edge.fixed.join(" ") });
    }
    cy.batch(() => {
      cy.elements().remove();
      cy.add(elements);
    });
    drawn = { ...plan, byId: nodes, shows: new Map() };
    drawLanes();
  }

  /* Brings all elements to the present step; only those that look different are touched. */
  function refresh() {
    const { step } = store.state;
    const chosen = chosenNow();
    const apply = (id, classes, data) => {
      const now = JSON.stringify([classes, data]);
      if (drawn.shows.get(id) === now) return;
      drawn.shows.set(id, now);
      const element = cy.getElementById(id);
      element.classes(classes);
      element.data(data);
    };
    cy.batch(() => {
      for (const node of drawn.byId.values()) {
        const { classes, caption } = nodeAt(node, step);
        const selected = chosen.get(node.id) || [];
        const label = `${classes.includes("wrong") ? "✗ " : ""}${nameOf(node)}`;
        apply(node.id, [node.kind, ...classes, ...selected], { label });
        const tone = classes.includes("current") ? ["strong"]
          : classes.includes("passed") ? ["sent"] : [];
        apply(`caption ${node.id}`, ["caption", ...tone], { label: caption });
        apply(`plus ${node.id}`, meetingHere(node, step) ? ["plus", "lit"] : ["plus"], {});
      }
      for (const box of drawn.boxes) {
        apply(box.id, ["box", ...(chosen.get(box.id) || [])], {});
        apply(`title ${box.id}`, ["title"], { label: titleOf(box, step) });
      }
      for (const edge of drawn.edges) {
        const { classes, label, width } = edgeAt(edge, step);
        apply(edge.id, [...edge.fixed, ...classes], { label, width });
      }
    });
  }

  // ---- lanes, as a layer of HTML under the canvas ----------------------------------------------

  const laneName = (lane) => (lane !== null ? `frame ${lane}` : tape.frames ? "no single frame" : "");

  function drawLanes() {
    parts.bands.replaceChildren();
    parts.heads.replaceChildren();
    if (!tape.frames) return;
    for (const column of drawn.columns) {
      const band = document.createElement("div");
      band.className = column.lane === null ? "band all" : "band";
      const head = document.createElement("span");
      head.textContent = laneName(column.lane);
      parts.bands.append(band);
      parts.heads.append(head);
    }
    moveLanes();
  }

  function moveLanes() {
    if (!drawn) return;
    const [zoom, pan] = [cy.zoom(), cy.pan()];
    [...parts.bands.children].forEach((band, i) => {
      const { left, right } = drawn.columns[i];
      const x = (left - 16) * zoom + pan.x;
      const width = (right - left + 32) * zoom;
      band.style.transform = `translateX(${x}px)`;
      band.style.width = `${width}px`;
      const head = parts.heads.children[i];
      head.style.transform = `translateX(${x}px)`;
      head.style.width = `${width}px`;
    });
  }

  // ---- the view --------------------------------------------------------------------------------

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const MARGIN = { x: 24, top: 46, bottom: 58 };

  function moveTo(view) {
    cy.stop();
    if (still.matches) cy.viewport(view);
    else cy.animate({ ...view, duration: 160, easing: "ease-out" });
  }

  function bounds() {
    const { columns, top, bottom } = drawn;
    return { left: columns[0].left - 16, right: columns.at(-1).right + 16, top, bottom };
  }

  function fitView() {
    const { left, right, top, bottom } = bounds();
    const [w, h] = [cy.width() - 2 * MARGIN.x, cy.height() - MARGIN.top - MARGIN.bottom];
    const zoom = Math.min(1.2, w / (right - left), h / (bottom - top));
    return { zoom, pan: {
      x: MARGIN.x + w / 2 - zoom * (left + right) / 2,
      y: MARGIN.top + h / 2 - zoom * (top + bottom) / 2 } };
  }

  /* The beginning of the graph, at the bottom and the left, in a size that can be read. */
  function nearView() {
    const { left, right, top, bottom } = bounds();
    const [w, h] = [cy.width() - 2 * MARGIN.x, cy.height() - MARGIN.top - MARGIN.bottom];
    const spare = [w - LEGIBLE * (right - left), h - LEGIBLE * (bottom - top)];
    return { zoom: LEGIBLE, pan: { x: MARGIN.x + Math.max(0, spare[0] / 2) - LEGIBLE * left,
      y: cy.height() - MARGIN.bottom - Math.max(0, spare[1] / 2) - LEGIBLE * bottom } };
  }

  /* Before the first step the whole program, as far as its names can be read; else the step. */
  function firstView() {
    const view = fitView();
    const whole = view.zoom >= (store.state.step < 0 ? WHOLE : LEGIBLE);
    cy.viewport(whole ? view : nearView());
    showCurrent(false);
  }

  /* Moves the view just as far as it takes to see `node`; or from the view `from`. */
  function reveal(node, moving = true, from = null) {
    const { zoom, pan } = from || { zoom: cy.zoom(), pan: cy.pan() };
    const push = (low, high, from, to) => (low < from ? from - low : high > to ? to - high : 0);
    const { x, y } = { x: node.x * zoom + pan.x, y: node.y * zoom + pan.y };
    const [w, h] = [node.width * zoom / 2, node.height * zoom / 2];
    const dx = push(x - w, x + w, MARGIN.x, cy.width() - MARGIN.x);
    const dy = push(y - h, y + h, MARGIN.top + 20, cy.height() - MARGIN.bottom - 20);
    if (!dx && !dy && !from) return;
    const view = { zoom, pan: { x: pan.x + dx, y: pan.y + dy } };
    if (moving) moveTo(view);
    else cy.viewport(view);
  }

  /* The node of a step that is to be seen: in the lane in focus, else in one already in view. */
  function showCurrent(moving = true, from = null) {
    const { step, frame } = store.state;
    if (step < 0) return;
    const { tensor } = events[step];
    const op = Flow.opAt(step);
    const nodes = [...drawn.byId.values()].filter((node) => (op !== null ? node.ops.includes(op)
      : node.tensor === tensor));
    const inView = (node) => {
      const { x, y } = { x: node.x * cy.zoom() + cy.pan().x, y: node.y * cy.zoom() + cy.pan().y };
      return x > 0 && x < cy.width() && y > MARGIN.top && y < cy.height() - MARGIN.bottom;
    };
    const node = nodes.find((n) => n.lane === frame) || nodes.find(inView) || nodes.at(-1);
    if (node) reveal(node, moving, from);
  }

  /* Where a module stands on the screen: its node, or its title if it is open. */
  function handleOf(path, lane) {
    const box = drawn.boxes.filter((b) => b.module.path === path);
    const found = box.find((b) => b.lane === lane) || box[0];
    if (found) return { x: (found.left + found.right) / 2, y: found.top + 21, ...found };
    const nodes = [...drawn.byId.values()].filter((n) => n.kind === "module" && n.module.path === path);
    return nodes.find((n) => n.lane === lane) || nodes[0];
  }

  /* Lays out anew with what was opened or closed staying where it is on the screen. */
  function redraw(before) {
    const { open, frame } = store.state;
    const path = [...open].find((p) => !before.has(p)) || [...before].find((p) => !open.has(p));
    const lane = clicked ? clicked.lane : frame;
    clicked = null;
    const old = handleOf(path, lane) || [...drawn.byId.values()][0];
    draw();
    const now = handleOf(path, lane) || drawn.byId.get(old.id) || [...drawn.byId.values()][0];
    cy.stop();
    cy.panBy({ x: (old.x - now.x) * cy.zoom(), y: (old.y - now.y) * cy.zoom() });
    if (far) cy.zoom({ level: LEGIBLE, position: { x: now.x, y: now.y } });
    const zoom = cy.zoom();
    refresh();
    if (now.top !== undefined) { // an open box: as much of it in view as there is room for
      const [top, bottom] = [now.top, now.bottom].map((y) => y * zoom + cy.pan().y);
      const over = bottom - (cy.height() - MARGIN.bottom);
      if (over > 0) cy.panBy({ x: 0, y: -Math.min(over, Math.max(0, top - MARGIN.top - 10)) });
    }
  }

  // ---- selection -------------------------------------------------------------------------------

  const keyOf = (node) => (node.kind === "module" ? `module:${node.module.path}`
    : node.kind === "op" ? `op:${node.op}` : `tensor:${node.tensor}`);

  /* The nodes and boxes by which what is selected can be seen: itself, or the closed module that
     holds it. */
  function nodesOf(selected) {
    if (!selected || !drawn) return [];
    const [kind, rest] = [selected.split(":", 1)[0], selected.slice(selected.indexOf(":") + 1)];
    const all = [...drawn.byId.values()];
    const exact = [...all, ...drawn.boxes].filter((node) => keyOf(node) === selected);
    if (exact.length) return exact;
    if (kind === "module") {
      const inside = Flow.layout.modules.get(rest).ops;
      return all.filter((node) => node.ops.some((i) => inside.includes(i)));
    }
    const t = Number(rest);
    const op = kind === "op" ? t : tensors[t].op !== null ? tensors[t].op
      : consumers[t].length ? consumers[t][0].op : null;
    return all.filter((node) => node.ops.includes(op));
  }

  /* The one of them in the frame in focus. */
  function focused(nodes) {
    return nodes.find((node) => node.lane === store.state.frame) || nodes.at(-1);
  }

  function chosenNow() {
    const nodes = nodesOf(store.state.selected);
    const main = focused(nodes);
    return new Map(nodes.map((node) => [node.id, [node === main ? "chosen" : "chosen-too"]]));
  }

  function select(node) {
    store.set({ selected: keyOf(node), frame: node.frame });
  }

  function toggle(module, node) {
    const open = new Set(store.state.open);
    if (!open.delete(module.path)) open.add(module.path);
    clicked = node;
    store.set({ open });
    clicked = null;
  }

  /* From the selected node along an edge or to the frame beside it. */
  function walk(direction) {
    const nodes = nodesOf(store.state.selected);
    const here = focused(nodes) || [...drawn.byId.values()].find((n) => n.ops.includes(Flow.opAt(
      store.state.step))) || [...drawn.byId.values()].sort((a, b) => b.y - a.y)[0];
    let next;
    if (direction === "left" || direction === "right") {
      const sign = direction === "left" ? -1 : 1;
      const row = [...drawn.byId.values()].filter((n) => Math.abs(n.y - here.y) < 2
        && (n.x - here.x) * sign > 0);
      next = row.sort((a, b) => (a.x - b.x) * sign)[0];
    } else {
      const [near, far] = direction === "down" ? ["to", "from"] : ["from", "to"];
      const order = ["plain", "residual", "spatial", "temporal", "parameter"];
      const ends = drawn.edges.filter((e) => e[near].id === here.id)
        .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
      next = ends.length ? ends[0][far] : null;
      // From an open module, to what it holds at that end.
      if (!next && here.module && here.left !== undefined) {
        const held = [...drawn.byId.values()].filter((n) => n.lane === here.lane
          && n.ops.some((i) => here.ops.includes(i)));
        next = held.sort((a, b) => (direction === "down" ? a.y - b.y : b.y - a.y))[0];
      }
    }
    if (!nodes.length) next = here;
    if (next) {
      select(next);
      reveal(next);
    }
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("button, summary")) return;
    const arrows = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
    const letters = { w: "up", s: "down", a: "left", d: "right" };
    const direction = event.shiftKey ? arrows[event.key] : letters[event.key];
    if (direction) walk(direction);
    else if (event.key === "ArrowUp" && !event.shiftKey) walk("up");
    else if (event.key === "ArrowDown" && !event.shiftKey) walk("down");
    else if (event.key === "Enter") {
      const node = focused(nodesOf(store.state.selected));
      if (!node || !node.module || !node.module.path) return;
      toggle(node.module, node);
    } else if (event.key === "+" || event.key === "=") zoomBy(1.25);
    else if (event.key === "-") zoomBy(0.8);
    else if (event.key === "0") moveTo(fitView());
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function zoomBy(factor) {
    const [x, y] = [cy.width() / 2, cy.height() / 2]; // stays where it is
    const zoom = Math.min(cy.maxZoom(), Math.max(cy.minZoom(), cy.zoom() * factor));
    const part = zoom / cy.zoom();
    const pan = cy.pan();
    moveTo({ zoom, pan: { x: x - (x - pan.x) * part, y: y - (y - pan.y) * part } });
  }

  // ---- the pointer -----------------------------------------------------------------------------

  function onTap(event) {
    const id = event.target === cy ? null : event.target.id();
    if (!id) return;
    const node = drawn.byId.get(id);
    const box = drawn.boxes.find((b) => b.id === id || `title ${b.id}` === id);
    const edge = drawn.edges.find((e) => e.id === id);
    if (node) {
      if (node.kind === "module") toggle(node.module, node);
      select(node);
    } else if (box) {
      if (id.startsWith("title ")) toggle(box.module, box);
      select(box);
    } else if (edge) {
      const { tensor, frame } = edge.wires[0];
      store.set({ selected: `tensor:${tensor}`, frame });
    }
  }

  function hint(element) {
    const id = element.id();
    const node = drawn.byId.get(id);
    if (id.startsWith("title ")) return "Click to close";
    if (node && node.kind === "module") {
      const type = node.module.type || "module";
      return `${node.module.path} (${type}), ${node.ops.length} ops. Click to open`;
    }
    if (node && node.kind === "op") return `${ops[node.op].op}: ${ops[node.op].forward}`;
    if (node) return `${tensors[node.tensor].kind} ${tensors[node.tensor].name}, ${shapeOf(node.tensor)}`;
    const edge = drawn.edges.find((e) => e.id === id);
    if (!edge) return "";
    const { wires } = edge;
    const words = wires.map((wire) => `${ops[wire.op].op} → ${tensors[wire.tensor].name}`);
    return `gradient ${words.slice(0, 4).join(", ")}${words.length > 4 ? ", …" : ""}`;
  }

  // ---- mounting --------------------------------------------------------------------------------

  const LEGEND = [
    ["M2 8H40", "", "", "forward done, gradient not yet: dashed, arrow upwards", "5 4"],
    ["M2 8H40", "backward", "back", "gradient has passed: arrow back, its norm (of one number: itself)"],
    ["M2 8H40", "residual", "", "residual branch", "9 3"],
    ["M2 8H40", "spatial", "", "spatial skip", "3 4"],
    ["M2 8H40", "temporal", "", "temporal skip, from the frame before", "14 5", 4],
    ["M2 8H40", "muted", "", "parameter to its op", "2 3"],
    ["M2 8H40", "muted", "", "dotted: no gradient is wanted here", "1.5 3"],
  ];

  const LABEL = "Graph of the program. Arrow up and down walk along its edges, a and d go to the frame "
    + "before and after, Enter opens and closes modules. The outline holds the same as text.";

  function legend() {
    const lines = LEGEND.map(([path, ink, way, words, dashes = "", width = 2]) => `
      <li><svg viewBox="0 0 48 16" aria-hidden="true" style="color: var(--${ink || "strong-line"})">
      <path d="${path}" stroke="currentColor" stroke-width="${width}" stroke-dasharray="${dashes}"/>
      <path d="${way === "back" ? "M9 3 1 8l8 5z" : "M38 3l8 5-8 5z"}" fill="currentColor"/></svg>
      ${words}</li>`);
    return `<details class="graph-legend"><summary>Legend
      <span class="axes">↑ layers${tape.frames ? " → time" : ""}</span></summary><ul>${lines.join("")}
      <li><b class="sign plus">+</b>paths meet: gradients add up; filled at the step where they do</li>
      <li><b class="sign double">▸</b>a module: click to open, click its title to close</li>
      <li><b class="sign halo">▲</b>where this step is; ▼ backwards</li></ul></details>`;
  }

  function mount(host) {
    host.classList.add("graph");
    if (!ops.length) {
      host.innerHTML = "<p class='graph-empty'>The recording holds no op.</p>";
      return;
    }
    host.innerHTML = `<div class="graph-bands" aria-hidden="true"></div>
      <div class="graph-canvas" tabindex="0" role="group" aria-label="${LABEL}"></div>
      <div class="graph-heads" aria-hidden="true"></div>
      <div class="graph-tools" role="group" aria-label="View of the graph">
        <button type="button" data-view="fit" title="Show the whole graph (0)">Fit</button>
        <button type="button" data-view="here" title="Go to the current step">Here</button>
        <button type="button" data-view="in" title="Zoom in (+)" aria-label="Zoom in">+</button>
        <button type="button" data-view="out" title="Zoom out (-)" aria-label="Zoom out">−</button>
      </div>${legend()}`;
    const find = (name) => host.querySelector(`.graph-${name}`);
    parts = { host, canvas: find("canvas"), bands: find("bands"), heads: find("heads"),
      sans: getComputedStyle(host).fontFamily };
    cy = window.cytoscape({ container: parts.canvas, style: look(host, far), layout: { name: "preset" },
      autoungrabify: true, autounselectify: true, boxSelectionEnabled: false, minZoom: 0.08,
      maxZoom: 3, pixelRatio: "auto" });
    Flow.graph.cy = cy;
    cy.on("zoom", () => {
      if (cy.zoom() < FAR === far) return;
      far = !far;
      cy.style(look(host, far));
    });
    draw();
    refresh();
    firstView();
    moveLanes();

    // The room for the graph changes with the window and with what else is shown; until the reader
    // has done something, the first view is made for the room that there is.
    let untouched = true;
    cy.one("tapstart scrollzoom", () => { untouched = false; });
    find("tools").addEventListener("click", () => { untouched = false; });
    new ResizeObserver(() => {
      const { clientWidth, clientHeight } = parts.canvas;
      if (clientWidth === cy.width() && clientHeight === cy.height()) return; // as drawn already
      cy.resize();
      if (untouched) firstView();
    }).observe(parts.canvas);

    cy.on("viewport", moveLanes);
    cy.on("tap", onTap);
    cy.on("mouseover", "node, edge", (event) => {
      parts.canvas.title = hint(event.target);
      parts.canvas.style.cursor = event.target.hasClass("box") ? "" : "pointer";
    });
    cy.on("mouseout", "node, edge", () => {
      parts.canvas.title = "";
      parts.canvas.style.cursor = "";
    });
    host.addEventListener("keydown", onKey);
    find("tools").addEventListener("click", (event) => {
      const view = event.target.dataset.view;
      if (view === "fit") moveTo(fitView());
      if (view === "in") zoomBy(1.25);
      if (view === "out") zoomBy(0.8);
      if (view === "here") centre();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      cy.style(look(host, far));
      draw();
      refresh();
    });

    let open = new Set(store.state.open);
    store.subscribe((state, changed) => {
      if (changed.has("open")) {
        redraw(open);
        open = new Set(state.open);
      } else if (changed.has("step") || changed.has("selected") || changed.has("frame")) refresh();
      // The first step leads from the view of the whole to where it can be read.
      if (changed.has("step")) showCurrent(true, untouched && far ? nearView() : null);
      else if (changed.has("selected") && !changed.has("open")) {
        const node = focused(nodesOf(state.selected));
        if (node && node.left === undefined) reveal(node);
      }
      untouched = false;
    });
  }

  function centre() {
    const op = Flow.opAt(store.state.step);
    const node = focused([...drawn.byId.values()].filter((n) => n.ops.includes(op)));
    if (!node) return;
    const zoom = Math.max(cy.zoom(), 0.8);
    moveTo({ zoom, pan: { x: cy.width() / 2 - zoom * node.x, y: cy.height() / 2 - zoom * node.y } });
  }

  /* The modules that are open at first: all of a small program, else none. */
  function initialOpen() {
    return new Set(ops.length <= SMALL ? [...Flow.modules.keys()] : []);
  }

  Flow.graph = { mount, initialOpen, cy: null };
})();
