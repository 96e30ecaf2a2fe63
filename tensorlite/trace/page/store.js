/* The tape, the state of the page, and what is known at each step.

   Flow.tape: the recording. Flow.store: which step, what is selected, open and shown; kept in the
   URL's fragment, so that a link opens the page as it was. Flow.at(step): how far the program and
   the gradients have come. All other scripts look here; none keeps a state of its own. */
(function () {
  "use strict";

  const tape = JSON.parse(document.getElementById("tape").textContent);
  const { tensors, ops, events } = tape;

  // ---- what happens when -------------------------------------------------------------------

  // For each op the step at which it was applied and the last at which the walk passed it; for
  // each tensor its pieces of gradient, walk by walk: a tape may hold several calls of backward.
  // (An op without a step of its own was applied before the recording began.)
  const forwardStep = new Array(ops.length).fill(-1);
  const backwardStep = new Array(ops.length).fill(null);
  const arrivals = tensors.map(() => []); // per tensor [{walk, step, summary}], in order
  const starts = [];
  const meetings = [];
  const failures = []; // {step, slot, what: "check" | "sum" | "unsent"}, in the order of the walk
  events.forEach((event, step) => {
    if (event.kind === "forward") {
      forwardStep[event.op] = step;
    } else if (event.kind === "start") {
      starts.push(step);
      arrivals[event.tensor].push({ walk: starts.length, step, summary: event.grad });
    } else {
      backwardStep[event.op] = step;
      if (event.pieces.some((piece) => piece.before)) meetings.push(step);
      event.unsent.forEach(({ slot }) => failures.push({ step, slot, what: "unsent" }));
      event.pieces.forEach((piece) => {
        arrivals[piece.tensor].push({ walk: starts.length, step, summary: piece.after });
        if (piece.check && !piece.check.right) failures.push({ step, slot: piece.slot,
          what: "check" });
        if (!piece.sum_right) failures.push({ step, slot: piece.slot, what: "sum" });
      });
    }
  });
  const consumers = tensors.map(() => []); // per tensor the ops that use it
  ops.forEach((op, i) => op.inputs.forEach((t) => {
    if (t !== null && !consumers[t].includes(i)) consumers[t].push(i);
  }));

  /* The gradient of a tensor as of a step: `status` is "none" (not computed yet), "partial" (a sum
     that is not complete) or "complete"; `summary` of the sum so far; `eventIndex`, where it came;
     `arrived` of `expected` pieces. With expected 0, the program never computes it. */
  function gradientAt(tensor, step) {
    const all = arrivals[tensor];
    const walk = walkAt(step);
    const last = all.reduce((w, a) => (a.walk <= walk ? a.walk : w), all.length ? all[0].walk : 0);
    const pieces = all.filter((a) => a.walk === last);
    const here = pieces.filter((a) => a.step <= step);
    const expected = pieces.length;
    if (!here.length) return { status: "none", summary: null, eventIndex: null, arrived: 0,
      expected };
    const newest = here[here.length - 1];
    const status = here.length === expected ? "complete" : "partial";
    return { status, summary: newest.summary, eventIndex: newest.step, arrived: here.length,
      expected };
  }

  function walkAt(step) {
    let walk = 0;
    while (walk < starts.length && starts[walk] <= step) walk += 1;
    return walk;
  }

  const known = new Map();
  function at(step) {
    if (!known.has(step)) {
      const gradients = new Map();
      known.set(step, {
        done: (op) => forwardStep[op] <= step,
        passed: (op) => backwardStep[op] !== null && backwardStep[op] <= step,
        valueKnown: (tensor) => tensors[tensor].op === null
          || forwardStep[tensors[tensor].op] <= step,
        gradient(tensor) {
          if (!gradients.has(tensor)) gradients.set(tensor, gradientAt(tensor, step));
          return gradients.get(tensor);
        },
      });
      if (known.size > 64) known.delete(known.keys().next().value); // a bound, not a speed-up
    }
    return known.get(step);
  }

  /* The step at which a tensor's gradient became complete, or null if it never is. */
  function completeStep(tensor) {
    const all = arrivals[tensor];
    return all.length ? all[all.length - 1].step : null;
  }

  // ---- modules -----------------------------------------------------------------------------

  // Every module path with all its ancestors: path -> {path, type, ops: all within it}.
  const modules = new Map();
  ops.forEach((op, i) => {
    if (op.module === null) return;
    for (let path = op.module; path !== ""; path = parentOf(path)) {
      if (!modules.has(path)) modules.set(path, { path, type: null, ops: [] });
      const module = modules.get(path);
      if (path === op.module) module.type = op.module_type;
      module.ops.push(i);
    }
  });

  function parentOf(path) {
    return path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "";
  }

  // ---- words -------------------------------------------------------------------------------

  /* "conv2d of block1.0.conv1". */
  function opWords(op) {
    return ops[op].module ? `${ops[op].op} of ${ops[op].module}` : ops[op].op;
  }

  /* "h"; of what the program gave no name, what made it: "relu of block1.0 (%65)". */
  function tensorWords(t) {
    const { name, op, kind } = tensors[t];
    if (!name.startsWith("%")) return name;
    return `${op === null ? kind : opWords(op)} (${name})`;
  }

  /* A variable's name without the number that tells its values apart ("h%8"). */
  const variable = (name) => name.replace(/(?!^)%\d+$/, "");

  /* What a step is, in words: "backward through conv2d of block1.0.conv1". */
  function describe(step) {
    if (step < 0) return "before the first step";
    const event = events[step];
    if (event.kind === "forward") return `forward: ${opWords(event.op)}`;
    if (event.kind === "start") return `backward starts at ${tensorWords(event.tensor)}`;
    return `backward through ${opWords(event.op)}`;
  }

  /* The op that a step is about, or null: of the start, the one that made the tensor. */
  function opAt(step) {
    if (step < 0) return null;
    const event = events[step];
    return event.kind === "start" ? tensors[event.tensor].op : event.op;
  }

  // ---- the state ---------------------------------------------------------------------------

  const PANELS = ["step", "arrays", "check", "grid", "ledger"];
  const start = () => ({
    step: -1, // index into tape.events; -1: before anything
    selected: null, // "op:5", "tensor:7", "module:block1.0"
    open: new Set(), // paths of the modules that are open
    frame: null, // the frame in focus
    panel: "step",
    block: null, // of the ledger
    parameter: null,
    depth: null, // of the grid's rows; null: the blocks
    outline: true, // whether the outline is shown
  });
  const state = start();
  const listeners = [];

  /* Change the state; whoever subscribed is told. `jump`: makes an entry in the browser's history,
     so that Back returns here; stepping makes none. */
  function set(changes, { jump = false } = {}) {
    const changed = new Set();
    for (const [key, value] of Object.entries(checked(changes))) {
      const same = key === "open" ? sameSet(state.open, value) : state[key] === value;
      if (!same) {
        if (jump && !changed.size) writeFragment();
        state[key] = value;
        changed.add(key);
      }
    }
    if (!changed.size) return;
    listeners.forEach((listener) => listener(state, changed));
    if (jump) writeFragment("pushState");
    else writeSoon();
  }

  /* Only what this tape has: a link may come from another one. */
  function checked(changes) {
    const good = { ...changes };
    if ("step" in good) {
      const step = Number.isFinite(good.step) ? Math.round(good.step) : -1;
      good.step = Math.max(-1, Math.min(events.length - 1, step));
    }
    if ("selected" in good && !exists(good.selected)) good.selected = null;
    if ("open" in good) good.open = new Set([...good.open].filter((path) => modules.has(path)));
    if ("panel" in good && !PANELS.includes(good.panel)) good.panel = "step";
    if ("frame" in good && !(good.frame >= 0 && good.frame < (tape.frames || 0))) good.frame = null;
    return good;
  }

  function exists(selected) {
    const { kind, key } = parse(selected);
    if (kind === "module") return modules.has(key);
    return Number.isInteger(key) && key >= 0 && key < (kind === "op" ? ops : tensors).length;
  }

  /* "op:5" as {kind: "op", key: 5}; of a module the key is its path. Nothing selected: no kind. */
  function parse(selected) {
    const [, kind, rest] = /^(op|tensor|module):(.*)$/.exec(selected || "") || [];
    return { kind, key: kind === "module" ? rest : Number.parseInt(rest, 10) };
  }

  function sameSet(a, b) {
    return a.size === b.size && [...a].every((item) => b.has(item));
  }

  function subscribe(listener) {
    listeners.push(listener);
  }

  // ---- the fragment ------------------------------------------------------------------------

  /* The state as a fragment; the step by the number that the page shows, from 1. */
  function fragment() {
    const fields = [["step", state.step + 1]];
    if (state.selected) fields.push(["select", state.selected]);
    fields.push(["open", [...state.open].join(",")]);
    if (state.frame !== null) fields.push(["frame", state.frame]);
    if (state.panel !== "step") fields.push(["panel", state.panel]);
    if (state.block) fields.push(["block", state.block]);
    if (state.parameter) fields.push(["parameter", state.parameter]);
    if (state.depth !== null) fields.push(["depth", state.depth]);
    if (!state.outline) fields.push(["outline", 0]);
    const plain = (value) => encodeURIComponent(value).replace(/%3A/g, ":").replace(/%2C/g, ",");
    return "#" + fields.map(([key, value]) => `${key}=${plain(value)}`).join("&");
  }

  function readFragment() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (key) => (given.has(key) ? Number(given.get(key)) : null);
    return {
      ...start(),
      step: given.has("step") ? number("step") - 1 : -1,
      selected: given.get("select"),
      open: given.has("open") ? new Set(given.get("open").split(",")) : Flow.graph.initialOpen(),
      frame: number("frame"),
      panel: given.get("panel") || "step",
      block: given.get("block"),
      parameter: given.get("parameter"),
      depth: number("depth"),
      outline: given.get("outline") !== "0",
    };
  }

  // Browsers allow some hundred changes a minute, and none at all in some frames.
  let timer = null;
  function writeSoon() {
    if (timer === null) timer = setTimeout(writeFragment, 350);
  }
  function writeFragment(how = "replaceState") {
    clearTimeout(timer);
    timer = null;
    if (fragment() === location.hash) return;
    try {
      history[how === "pushState" ? "pushState" : "replaceState"](null, "", fragment());
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
    }
  }

  addEventListener("hashchange", () => {
    if (location.hash !== fragment()) set(readFragment());
  });
  /* Take the state from the address; to be called when the other scripts are there. */
  function restore() {
    Object.assign(state, checked(readFragment()));
  }

  window.Flow = {
    tape, at, describe, opAt, opWords, tensorWords, variable, parse, completeStep, modules, parentOf, consumers,
    forwardStep, backwardStep, starts, meetings, failures, PANELS,
    link: () => location.href.split("#")[0] + fragment(),
    store: { state, set, subscribe, restore },
  };
})();
