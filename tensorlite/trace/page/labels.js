/* What the graph says at a step: the words and numbers in its nodes, on its edges and at the heads of
   open modules, and the classes by which they are drawn. Nothing here draws. */
(() => {
  "use strict";
  const Flow = window.Flow;
  const { tensors, ops, events } = Flow.tape;
  const { moduleOf } = Flow.layout;

  const WORDS = { temporal: ["temporal skip", "temporal"], spatial: ["spatial skip", "spatial"],
    residual: ["residual branch", "residual"] };

  // ---- numbers and words -----------------------------------------------------------------------

  const number = (x) => Flow.views.digits(x ?? null, 3);

  /* The sizes of the gradients of several tensors: each for itself, as their norms do not add. */
  const several = (sizes) => (sizes.length > 2 ? `of ${sizes.length} tensors`
    : sizes.map(number).join(", "));

  const single = (summary) => summary.values && summary.values.length === 1;

  /* The norm of a gradient, or of one frame of it; of a single number the number itself; null where
     elements are NaN or infinite. */
  function size(summary, frame) {
    if (summary.nonfinite) return null;
    if (single(summary)) return summary.values[0];
    const norms = summary.frame_norms;
    return frame !== null && norms && norms[frame] !== null && norms[frame] !== undefined
      ? norms[frame] : summary.norm;
  }

  const shapeOf = (t) => (tensors[t].shape.length ? tensors[t].shape.join("×") : "scalar");

  /* "block1.0" rather than "0". */
  function moduleName(module) {
    return /^\d+$/.test(module.name) && module.parent.path
      ? `${moduleName(module.parent)}.${module.name}` : module.name;
  }

  function opName(i) {
    const module = moduleOf[i];
    if (module.single) return moduleName(module);
    const { name } = tensors[ops[i].output];
    return ops[i].module === null && !name.startsWith("%") ? `${Flow.variable(name)} = ${ops[i].op}`
      : ops[i].op;
  }

  /* A parameter without its module; of a number without a name the number. */
  function shortName(t) {
    if (isNumber(t)) return number(tensors[t].value.values[0]);
    return Flow.variable(tensors[t].name).split(".").at(-1);
  }

  function isNumber(t) {
    const { name, value } = tensors[t];
    return name.startsWith("%") && value && single(value);
  }

  function nameOf(node) {
    if (node.kind === "module") return `▸ ${moduleName(node.module)}`;
    return node.kind === "op" ? opName(node.op) : shortName(node.tensor);
  }

  const heading = (module) => [`▾ ${moduleName(module)}`, module.type].filter(Boolean).join("  ");

  // ---- what is known of an element at a step ---------------------------------------------------

  const pieces = ops.map(() => new Map()); // of each op by slot [{step, piece}]
  const meets = new Set(); // tensors in which paths meet
  let smallest = Infinity;
  let largest = 0;
  events.forEach((event, step) => event.pieces.forEach((piece) => {
    const of = pieces[event.op];
    if (!of.has(piece.slot)) of.set(piece.slot, []);
    of.get(piece.slot).push({ step, piece });
    if (piece.before) meets.add(piece.tensor);
    for (const norm of [piece.grad.norm, ...(piece.grad.frame_norms || [])]) {
      if (norm > 0) [smallest, largest] = [Math.min(smallest, norm), Math.max(largest, norm)];
    }
  }));

  function pieceAt(wire, step) {
    const all = pieces[wire.op].get(wire.slot) || [];
    return all.findLast((p) => p.step <= step);
  }

  const differentiable = (wire) => ops[wire.op].recorded && tensors[wire.tensor].requires_grad;

  /* The gradient of what leaves a node upwards: {status, text}; "none" if nothing has arrived. */
  function gradientOf(node, step) {
    const known = node.outputs.map((t) => Flow.at(step).gradient(t)).filter((g) => g.summary);
    if (!known.length) return { status: "none", text: "" };
    const whole = known.length === node.outputs.length && known.every((g) => g.status === "complete");
    const text = several(known.map((g) => size(g.summary, node.frame)));
    return { status: whole ? "complete" : "partial", text: `∇ ${text}${whole ? "" : " so far"}` };
  }

  /* The tensors by which a node's gradient is told: a module's are those used outside of it. */
  function outputsOf(node) {
    if (node.kind === "tensor" || node.kind === "parameter") return [node.tensor];
    if (node.kind === "op") return [ops[node.op].output];
    return Flow.layout.outputsOf(node.module, node.lane);
  }

  /* The second line of a node. */
  function captionOf(node, step, state) {
    const gradient = gradientOf(node, step);
    const words = [];
    if (node.kind === "module") {
      const current = Flow.opAt(step);
      if (node.ops.includes(current)) {
        const inside = moduleOf[current].path.slice(node.module.path.length + 1);
        const path = /^\d/.test(inside) ? `${moduleName(node.module)}.${inside}` : inside;
        const words = moduleOf[current].single ? [path] : [path, ops[current].op];
        return [state.backward ? "▼" : "▲", ...words].filter(Boolean).join(" ");
      }
      const of = node.ops.length;
      const part = state.passed && state.passed < state.recorded ? state.recorded - state.passed
        : state.done && state.done < of ? state.done : null;
      words.push(part === null ? `${of} ${of === 1 ? "op" : "ops"}` : `${part} of ${of} ops`);
    } else {
      const t = node.kind === "op" ? ops[node.op].output : node.tensor;
      const { value } = tensors[t];
      if (node.kind === "op" && moduleOf[node.op].single) words.push(ops[node.op].op);
      else if (node.kind === "tensor" && isNumber(t)) words.push(tensors[t].kind);
      else if (value && single(value) && state.done) words.push(`= ${number(value.values[0])}`);
      else words.push(shapeOf(t));
    }
    if (gradient.text) words.push(gradient.text);
    return words.join(" · ");
  }

  /* How far the walk has come with a node: {done, passed: of its ops; recorded; backward: whether
     the step is one of the backward walk; current}. */
  function progress(node, step) {
    const at = Flow.at(step);
    const current = step >= 0 && (node.kind === "op" || node.kind === "module"
      ? node.ops.includes(Flow.opAt(step)) : events[step].tensor === node.tensor);
    return {
      done: node.ops.length ? node.ops.filter((i) => at.done(i)).length : 1,
      passed: node.ops.filter((i) => at.passed(i)).length,
      recorded: node.ops.filter((i) => ops[i].recorded).length,
      backward: step >= 0 && events[step].kind !== "forward",
      current,
    };
  }

  function wrong(node, step) {
    return Flow.failures.some(({ step: when }) => (
      when <= step && node.ops.includes(events[when].op)));
  }

  /* The classes of a node at a step, and its second line. */
  function nodeAt(node, step) {
    const state = progress(node, step);
    const classes = [];
    const leaf = node.kind === "tensor" || node.kind === "parameter";
    const gradient = leaf ? tensors[node.tensor].requires_grad : state.recorded > 0;
    if (!gradient) classes.push("apart");
    if (!state.done) classes.push("idle");
    else if (leaf ? Flow.at(step).gradient(node.tensor).status === "complete"
      : state.recorded && state.passed === state.recorded) classes.push("passed");
    else if (leaf || state.done === node.ops.length) classes.push("done");
    else classes.push("idle", "begun");
    if (state.current) classes.push("current");
    if (wrong(node, step)) classes.push("wrong");
    return { classes, caption: captionOf(node, step, state) };
  }

  const LENGTH = { plain: 5, residual: 5, spatial: 5, temporal: 5, parameter: 2.5 };

  /* The classes, the label and the width of an edge at a step. */
  function edgeAt(edge, step) {
    const wires = edge.wires.filter(differentiable);
    const reached = edge.wires.some((wire) => Flow.at(step).done(wire.op));
    const sent = wires.map((wire) => ({ wire, ...pieceAt(wire, step) })).filter((p) => p.piece);
    const classes = [edge.kind];
    if (!wires.length) classes.push("apart");
    if (!reached) classes.push("idle");
    if (!sent.length || sent.length < wires.length) {
      if (wires.length) classes.push("waiting");
    } else classes.push("passed");
    if (sent.some((p) => p.step === step)) classes.push("current");
    if (sent.some(({ piece }) => piece.check && !piece.check.right)) classes.push("wrong");

    // Pieces of one tensor are to be added, which norms do not: each is told.
    const sizes = sent.map(({ piece, wire }) => size(piece.grad, wire.frame));
    const meeting = new Set(sent.map((p) => p.wire.tensor)).size < sent.length;
    let text = "";
    if (sizes.length > 3) text = `${sizes.length} pieces`;
    else text = sizes.map(number).join(meeting ? " + " : ", ");
    if (sent.length && sent.length < wires.length) text += ", …";
    if (classes.includes("wrong")) text = `✗ ${text}`;
    const total = Math.hypot(...sizes);
    const range = Math.log(largest / smallest) || 1;
    const base = edge.kind === "temporal" ? 3 : 1.5;
    const width = total > 0
      ? base + LENGTH[edge.kind] * Math.min(1, Math.max(0, Math.log(total / smallest) / range)) : base;
    const [long, short] = WORDS[edge.kind] || ["", ""];
    const gap = edge.kind === "temporal" && sizes.length > 1 ? "\n" : " "; // lanes are near
    const label = text ? `${short}${gap}${text}`.trim() : long;
    return { classes, label, width: sizes.length ? Math.round(width * 4) / 4 : 1.5 };
  }

  function meetingHere(node, step) {
    return step >= 0 && events[step].pieces.some((piece) => piece.before
      && (node.outputs.includes(piece.tensor) || node.ops.includes(tensors[piece.tensor].op)));
  }

  function titleOf(box, step) {
    const state = progress(box, step);
    const count = `${box.ops.length} ${box.ops.length === 1 ? "op" : "ops"}`;
    const awaited = state.backward && box.outputs.length ? "∇ not yet" : "";
    const second = [count, gradientOf(box, step).text || awaited].filter(Boolean).join(" · ");
    return `${heading(box.module)}\n${second}`;
  }

  Flow.labels = { number, several, size, shapeOf, moduleName, opName, nameOf, heading, outputsOf, meets,
    meetingHere, nodeAt, edgeAt, titleOf };
})();
