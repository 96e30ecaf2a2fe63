/* The grid of time and layers: in each cell the norm of the gradient at a layer's output in a
   frame, as far as it has come at this step. The loss is at the top, the input below; frames run
   from left to right. Gradients thus come down, and by temporal skips also to the left. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const { tensors, ops } = tape;
  const v = Flow.views;
  const { h } = v;

  const deepest = Math.max(0, ...[...Flow.modules.keys()].map((path) => path.split(".").length));
  const children = new Map(); // path -> paths of the modules directly within
  for (const path of Flow.modules.keys()) {
    const parent = Flow.parentOf(path);
    children.set(parent, [...(children.get(parent) || []), path]);
  }
  /* Whether a module is a layer: it has no modules within, and its ops are of one kind. */
  const isLayer = (path) => !children.has(path)
    && new Set(Flow.modules.get(path).ops.map((i) => ops[i].op)).size === 1;

  /* The row that an op belongs to: {key, name}. At a depth, its module cut to that depth; else its
     block: the outermost module with no modules within, or with a layer directly within. Ops outside
     any module are of one row if they are of one line of the program: the same layer in several
     frames. */
  function rowOf(op, depth) {
    if (!op.module) {
      if (!op.source) return { key: `:${op.op}`, name: op.op };
      const { file, line, text } = op.source;
      return { key: `:${file}:${line}`, name: text };
    }
    const names = op.module.split(".");
    const paths = names.map((_, i) => names.slice(0, i + 1).join("."));
    const path = depth !== null ? paths[Math.min(depth, paths.length) - 1]
      : paths.find((p) => !children.has(p) || children.get(p).some(isLayer)) ?? op.module;
    return { key: path, name: path, module: path };
  }

  /* The rows, from the loss to the input: {key, name, cells: per frame a tensor or null}. A row's
     output is that of its last op; an op of that name which comes last in an earlier frame is its
     output there. */
  const known = new Map();
  function rowsAt(depth) {
    if (known.has(depth)) return known.get(depth);
    const rowOfOp = ops.map((op) => rowOf(op, depth));
    const rows = new Map();
    for (let i = ops.length - 1; i >= 0; i -= 1) {
      const op = ops[i];
      if (!op.frames || !tensors[op.output].requires_grad) continue;
      const { key } = rowOfOp[i];
      if (!rows.has(key)) rows.set(key, { ...rowOfOp[i], op: op.op,
        cells: new Array(tape.frames).fill(null) });
      const row = rows.get(key);
      if (op.op === row.op) op.frames.forEach((t) => { row.cells[t] ??= op.output; });
    }
    const list = [...rows.values()];
    for (const input of inputs(rowOfOp)) {
      const below = list.findLastIndex((row) => input.users.has(row.key));
      list.splice(below < 0 ? list.length : below + 1, 0, input);
    }
    known.set(depth, { rows: list, skips: skipsOf(list, rowOfOp) });
    return known.get(depth);
  }

  /* The rows of what the program begins with, where its gradient is wanted; the inputs of several
     frames that are used in the same place are of one row. */
  function inputs(rowOfOp) {
    const found = new Map();
    tensors.forEach(({ op, kind, frames, requires_grad: wanted }, t) => {
      if (op !== null || kind === "parameter" || !frames || !wanted || !Flow.consumers[t].length) {
        return;
      }
      const users = Flow.consumers[t].map((i) => rowOfOp[i].key);
      const name = Flow.variable(Flow.tensorWords(t)).replace(/\[\d+\]$/, "[…]"); // xs[2]: of xs
      const key = `input ${name} of ${users[0]}`;
      if (!found.has(key)) found.set(key, { key, name, users: new Set(),
        cells: new Array(tape.frames).fill(null) });
      const row = found.get(key);
      users.forEach((user) => row.users.add(user));
      frames.forEach((frame) => { row.cells[frame] ??= t; });
    });
    return found.values();
  }

  /* The temporal skips between cells: {from: [row, frame], to: [row, frame]}, as gradients go. */
  function skipsOf(rows, rowOfOp) {
    const place = new Map(rows.map((row, i) => [row.key, i]));
    const found = new Map();
    ops.forEach((op, i) => op.shifts.forEach((shift, slot) => {
      const t = op.inputs[slot];
      const source = place.get(rowOfOp[i].key);
      if (!shift || t === null || !op.frames || source === undefined) return;
      const target = place.get(originRow(t, rowOfOp, rows, rows[source]));
      if (target === undefined) return;
      op.frames.filter((frame) => frame - shift >= 0).forEach((frame) => {
        const skip = { from: [source, frame], to: [target, frame - shift] };
        found.set(JSON.stringify(skip), skip);
      });
    }));
    return [...found.values()];
  }

  /* The row that a skipped tensor comes from: back through what the skip's own row does to it (a
     projection, a slice), unless it is that row's output. */
  function originRow(t, rowOfOp, rows, own) {
    for (;;) {
      const op = tensors[t].op;
      if (own.cells.includes(t)) return own.key;
      if (op === null) return (rows.find((row) => row.cells.includes(t)) || own).key;
      if (rowOfOp[op].key !== own.key) return rowOfOp[op].key;
      t = ops[op].inputs.find((input) => input !== null && tensors[input].frames);
      if (t === undefined) return own.key;
    }
  }

  /* The norm of frame t's part of a gradient, or null where it was not kept. */
  function frameNorm(summary, t) {
    return summary.frame_norms ? summary.frame_norms[t] : null;
  }

  Flow.panels.grid = {
    title: "Time × layer",
    render(body) {
      if (!tape.frames) {
        body.replaceChildren(h("h2", null, "Time × layer"), h("p", null,
          "This program has no frames. Where an axis of its input is time, say so with ",
          h("code", null, "trace.frames(x, axis=1)"), ", or frame by frame with ",
          h("code", null, "trace.frame(x, t)"), "."));
        return;
      }
      const { rows, skips } = rowsAt(store.state.depth);
      const [low, high] = range(rows);
      const table = tableOf(rows, low, high);
      const drawing = h("div", { class: "grid-box" }, table);
      const ends = [v.digits(low, 3), "norm, logarithmic", v.digits(high, 3)];
      body.replaceChildren(...[h("h2", null, "Time × layer"),
        h("p", null, "Norm of the gradient at each layer’s output and at the input, frame by ",
          "frame, as of this step. The loss is above, the input below."),
        chooser(), v.scrolling("Grid", "grid-scroll", drawing),
        low < high && v.scaleBar(v.RISING, ends),
        h("p", { class: "legend" }, h("span", { class: "sample hatched" }),
          " not computed yet  ◐ partial sum  – not held  ",
          skips.length > 0 && [h("span", { class: "temporal-sign" }, "↙"),
            " temporal skip: gradient goes a frame back"])].filter(Boolean));
      arrows(drawing, table, skips);
    },
  };

  function tableOf(rows, low, high) {
    const frames = Array.from({ length: tape.frames }, (_, t) => h("th", { scope: "col",
      class: t === store.state.frame ? "focus" : null }, `frame ${t}`));
    const lines = rows.map((row) => h("tr", null,
      h("th", { scope: "row", title: row.name }, row.module ? v.moduleLink(row.module) : row.name),
      row.cells.map((tensor, t) => h("td", null, cell(row, tensor, t, low, high)))));
    return h("table", { class: "grid" },
      h("caption", { class: "visually-hidden" },
        "Norm of the gradient at each layer's output in each frame"),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "layer"), frames)),
      h("tbody", null, lines));
  }

  /* The least and largest norm that any cell ever has: the scale stays the same while stepping. */
  function range(rows) {
    const norms = rows.flatMap((row) => row.cells.map((tensor, t) => (
      tensor !== null && tensors[tensor].grad ? frameNorm(tensors[tensor].grad, t) : null)));
    const above = norms.filter((norm) => norm > 0);
    return [Math.min(...above), Math.max(...above)];
  }

  function cell(row, tensor, t, low, high) {
    const where = `${row.name}, frame ${t}`;
    const blank = (sign, words) => (
      h("span", { class: "cell blank", title: `${where}: ${words}` }, sign));
    if (tensor === null) return blank("–", "not held");
    const { status, summary, arrived, expected } = Flow.at(store.state.step).gradient(tensor);
    if (!expected) return blank("none", "the program never computes it");
    const done = Flow.completeStep(tensor);
    const button = (kind, style, words, ...shown) => h("button", { type: "button",
      class: `cell ${kind}`, style, "data-step": done, "data-tensor": tensor,
      title: `${where}: ${words}; complete at step ${done + 1}`,
      "aria-label": `${where}: ${words}; go to step ${done + 1}` }, shown);
    if (!summary) return button("hatched", null, "not computed yet", h("span", null, "not yet"));
    const norm = frameNorm(summary, t);
    if (norm === null) return blank("–", "its norm was not kept");
    const partial = status === "partial";
    const at = norm > 0 && high > low ? Math.log(norm / low) / Math.log(high / low) : 0;
    const words = [`${norm}`, partial && `partial: ${arrived} of ${expected} pieces`,
      summary.nonfinite > 0 && `without ${summary.nonfinite} elements, over all its frames, that `
        + "are NaN or infinite"].filter(Boolean).join(", ");
    return button(partial ? "partial" : "", v.painted(v.rising(at)), words,
      h("data", { value: norm }, summary.nonfinite > 0 && "⚠ ", partial && "◐ ",
        v.digits(norm, 3)));
  }

  function chooser() {
    if (deepest < 2) return null;
    const depths = Array.from({ length: deepest },
      (_, i) => [`${i + 1}`, `modules of depth ${i + 1}`]);
    const chosen = String(store.state.depth ?? "");
    const options = [["", "blocks"], ...depths].map(([value, text]) => (
      h("option", { value, selected: value === chosen }, text)));
    const choose = () => store.set({ depth: select.value ? Number(select.value) : null });
    const select = h("select", { onchange: choose }, options);
    return h("p", null, h("label", null, "Rows: ", select));
  }

  /* Arrows over the table, from cell to cell; drawn where the browser has laid the cells out. */
  function arrows(box, table, skips) {
    if (!skips.length) return;
    const origin = table.getBoundingClientRect();
    const lines = skips.map(({ from, to }) => {
      const [a, b] = [from, to].map(([row, t]) => (
        table.tBodies[0].rows[row].cells[t + 1].firstElementChild));
      if (a.classList.contains("blank") || b.classList.contains("blank")) return null;
      const [one, other] = [a, b].map((element) => element.getBoundingClientRect());
      // From the lower left corner of a cell to the upper right corner of the one it goes to.
      const below = to[0] > from[0];
      const x1 = one.left - origin.left + (below ? 10 : 3);
      const y1 = (below ? one.bottom - 3 : (one.top + one.bottom) / 2) - origin.top;
      const x2 = other.right - origin.left - (below ? 12 : 3);
      const y2 = (below ? other.top + 4 : (other.top + other.bottom) / 2) - origin.top;
      return h("svg:path", { d: `M${x1} ${y1}L${x2} ${y2}`, "marker-end": "url(#skip-head)" });
    });
    const head = h("svg:marker", { id: "skip-head", viewBox: "0 0 8 8", refX: 6, refY: 4,
      markerWidth: 5, markerHeight: 5, orient: "auto" }, h("svg:path", { d: "M0 0 8 4 0 8z" }));
    box.append(h("svg:svg", { class: "skips", width: origin.width, height: origin.height,
      "aria-hidden": "true" }, h("svg:defs", null, head), lines));
  }
})();
