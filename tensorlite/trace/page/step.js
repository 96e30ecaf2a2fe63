/* The panel of the step: what the op does, what comes in, what is sent on, and what it adds to. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const { tensors, ops, events } = tape;
  const v = Flow.views;
  const { h, number, how, section } = v;

  const SMALL = 16; // elements up to which sums are shown value by value

  Flow.panels.step = {
    title: "Step",
    render(body) {
      const { step } = store.state;
      const event = events[step];
      const parts = step < 0 ? welcome() : { forward, start, backward }[event.kind](event, step);
      body.replaceChildren(...parts.flat().filter(Boolean));
    },
  };

  function welcome() {
    const count = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
    const parameters = tensors.filter((t) => t.kind === "parameter");
    const sizes = parameters.map((t) => t.shape.reduce((a, b) => a * b, 1));
    const elements = sizes.reduce((a, b) => a + b, 0).toLocaleString("en");
    const versions = Object.entries(tape.versions).map(([name, version]) => `${name} ${version}`);
    return [
      h("h2", null, "Before the first step"),
      h("p", null, `The program applies ${count(ops.length, "op")}. `,
        parameters.length > 0
          && `It has ${count(parameters.length, "parameter")} with ${elements} elements. `,
        tape.frames && `Its input has ${count(tape.frames, "frame")}. `,
        `The recording has ${count(events.length, "step")}`,
        Flow.starts.length === 0 ? " and no backward."
          : Flow.meetings.length === 0 ? "; nowhere in it do paths meet."
            : `; at ${Flow.meetings.length} of them paths meet, and their gradients add.`),
      events.length > 0 && h("p", null,
        h("button", { type: "button", class: "primary", "data-step": 0 }, "First step"),
        " or press ", h("kbd", null, "→"), "; ", h("kbd", null, "?"), " lists the keys."),
      Flow.starts.length > 0 && Flow.check.verdict(),
      tape.notes.length > 0
        && h("ul", { class: "notes" }, tape.notes.map((note) => h("li", null, note))),
      how(versions.join(", ")),
    ];
  }

  function forward(event) {
    const op = ops[event.op];
    return [heading("forward", "→ forward", event.op), formulas(op, event), ends(op), source(op),
      saved(op)];
  }

  function start(event) {
    const { op } = tensors[event.tensor];
    return [heading("backward", "← backward starts", op),
      h("p", null, "The walk back begins at ", v.tensorLink(event.tensor),
        ". Its gradient with respect to itself is what the program gave, or 1:"),
      brief(event.grad),
      op === null ? null : source(ops[op])];
  }

  function backward(event, step) {
    const op = ops[event.op];
    const alone = event.pieces.filter((piece) => !piece.before);
    const sent = `${event.pieces.length ? "What" : "Nothing"} is sent to the inputs`;
    return [heading("backward", "← backward", event.op),
      event.pieces.map((piece) => alarms(op, piece, step)).flat(),
      event.unsent.map((one) => h("div", { class: "alarm" },
        h("strong", null, "✗ A gradient is missing. "), "Nothing is sent to ",
        v.tensorLink(one.tensor), ", which the op depends on. ",
        h("button", { type: "button", class: "link", "data-panel": "check" }, "Compare them"))),
      event.pieces.filter((piece) => piece.before).map((piece) => meeting(op, piece, step)),
      h("h3", null, "Gradient that comes in, of ", v.tensorLink(op.output)), brief(event.grad),
      alone.length || !event.pieces.length ? h("h3", null, sent) : null,
      alone.map((piece) => pieceView(op, piece, step)),
      formulas(op, event), ends(op), source(op), saved(op)];
  }

  function heading(kind, words, op) {
    const { module, module_type: type, frames } = op === null ? {} : ops[op];
    return h("div", { class: `step-heading ${kind}` },
      h("span", { class: `badge ${kind}` }, words),
      op !== null && h("h2", null, v.opLink(op)),
      h("p", null, module && [v.moduleLink(module), " · "],
        [type, v.frameWords(frames)].filter(Boolean).join(" · ")));
  }

  // ---- what is sent, and what it adds to ---------------------------------------------------

  function alarms(op, piece, step) {
    const first = Flow.failures.length > 0 && Flow.failures[0].step === step;
    const alarm = (title, ...words) => h("div", { class: "alarm" },
      h("strong", null, `✗ ${title} `), words);
    return [
      piece.sum_right ? null : alarm("The sum is wrong.", "At ", v.tensorLink(piece.tensor),
        " what is kept is not what was there plus what was sent: ",
        "gradients of paths that meet must add."),
      piece.check && !piece.check.right ? alarm("This gradient is wrong.",
        "What ", h("b", null, op.op), " sends to ", v.tensorLink(piece.tensor),
        " differs from finite differences of the op itself",
        first ? ": the first step of the walk where they part. " : ". ",
        h("button", { type: "button", class: "link", "data-panel": "check" }, "Compare them"))
        : null,
    ];
  }

  /* The place where a gradient comes to one that has come by another path. */
  function meeting(op, piece, step) {
    const { arrived, expected } = Flow.at(step).gradient(piece.tensor);
    const which = arrived === 2 ? "Two paths meet here"
      : `Path ${arrived} of ${expected} joins here`;
    return h("div", { class: "meeting-box" },
      h("p", null, h("strong", null, `⋈ ${which}: their gradients add. `),
        v.tensorLink(piece.tensor), ` is used ${expected} times; `,
        "each use is a way in which the loss depends on it."),
      pieceView(op, piece, step));
  }

  /* before + sent = after, one below the other. */
  function pieceView(op, piece, step) {
    const { before, grad, after, sum_right: right } = piece;
    const shift = op.shifts[piece.slot];
    const small = grad.values !== null && grad.values.length <= SMALL;
    const most = v.largest([before, grad, after]);
    const shown = (summary) => (small ? v.valuesTable(summary, { most })
      : [h("p", null, "norm ", v.norm(summary)),
        summary.picture && v.picture(summary, { small: true, most })]);
    const line = (sign, title, summary, kind = "") => [
      h("span", { class: `sign ${kind}` }, sign), h("h4", { class: kind }, title),
      h("div", { class: `term ${kind}` }, shown(summary))];
    return h("section", { class: before ? "piece met" : "piece" },
      h("header", null, h("code", null, op.slots[piece.slot]), " ", v.tensorLink(piece.tensor), " ",
        v.role(op.roles[piece.slot]),
        shift > 0 && h("span", { class: "badge temporal" },
          shift === 1 ? "one frame back" : `${shift} frames back`)),
      h("div", { class: "sum" },
        before && line("", "before", before), line(before ? "+" : "", "sent", grad),
        before && line(right ? "=" : "≠", "after", after, right ? "total" : "total bad")),
      how(outcome(piece, Flow.at(step).gradient(piece.tensor), small)));
  }

  /* What has become of the sum at the input: complete or not, and where it goes. */
  function outcome(piece, gradient, small) {
    const { before, sum_right: right, held, check } = piece;
    const agrees = check && check.right && [" ✓ What is sent agrees with finite differences",
      Flow.check.finite(check) ? "." : ", where both are finite."];
    if (!right) {
      const words = `✗ not the sum of the ${gradient.arrived} pieces so far.`;
      return [h("span", { class: "status wrong" }, words), agrees];
    }
    return [v.status(gradient), !before && gradient.expected > 1 && ", the first to arrive",
      piece.deposited && [" → goes to ", h("code", null, ".grad"),
        held && [", added to what that held (norm ", v.norm(held), ")"]],
      ".", before && !small && " The arrays add; their norms do not.",
      agrees];
  }

  /* An array in a line or two. */
  function brief(summary) {
    if (summary.values && summary.values.length <= SMALL) return v.valuesTable(summary);
    return h("div", { class: "brief" }, v.statistics(summary),
      summary.picture && v.picture(summary, { small: true }));
  }

  // ---- what there is to say of any op ------------------------------------------------------

  function formulas(op, event) {
    const line = (title, text, now) => text && h("div", { class: now ? "formula now" : "formula" },
      h("h4", null, title), h("pre", null, text));
    const options = Object.entries(op.options).filter(([, value]) => value !== null)
      .map(([name, value]) => `${name}=${JSON.stringify(value)}`);
    return section("Formulas", line("forward", op.forward, event.kind === "forward"),
      line("backward", op.backward, event.kind === "backward"),
      line("with numbers", event.numbers),
      options.length > 0 && how(`options: ${options.join(", ")}`));
  }

  /* The op's inputs and its output, with what is known of them at this step. */
  function ends(op) {
    const at = Flow.at(store.state.step);
    const walking = Flow.starts.length > 0 && store.state.step >= Flow.starts[0];
    const gradientCell = (t) => {
      const { status, summary, expected } = at.gradient(t);
      if (!summary) return h("td", { class: "hatched" }, expected ? "not yet" : "none");
      return v.right([status === "partial" && "◐ ", v.norm(summary)]);
    };
    const row = (label, t, role) => h("tr", null, h("td", null, h("code", null, label)),
      t === null ? h("td", { colspan: walking ? 4 : 3 }, "left out") : [
        h("td", null, v.tensorLink(t), " ", v.role(role)),
        h("td", null, v.shape(tensors[t].shape)), v.right(v.norm(tensors[t].value)),
        walking && gradientCell(t)]);
    const heads = ["", "tensor", "shape", "norm", ...(walking ? ["gradient’s norm"] : [])];
    return section("Inputs → output", v.table(heads, [
      ...op.inputs.map((t, i) => row(op.slots[i], t, op.roles[i])),
      row("→ output", op.output, null)]));
  }

  /* The program's line that asked for the op, among its neighbours. */
  function source(op) {
    if (!op.source) return null;
    const { file, line, text, function: name } = op.source;
    const from = Math.max(1, line - 3);
    const around = (tape.sources[file] || []).slice(from - 1, line + 3);
    const shown = around.length ? around.map((words, i) => [from + i, words]) : [[line, text]];
    const inside = name && name !== "<module>" ? `, in ${name}` : "";
    return section("Source", how(`${file}, line ${line}${inside}`),
      h("pre", { class: "source", tabindex: 0 }, shown.map(([n, words]) => {
        const here = n === line;
        const mark = `${here ? "▶" : " "}${n}`.padStart(5);
        return h("span", { class: here ? "line here" : "line", "aria-current": here && "true" },
          h("span", { class: "line-number" }, mark), ` ${words}\n`);
      })));
  }

  function saved(op) {
    if (!op.recorded) return how("Not recorded: nothing here needs a gradient.");
    const arrays = op.saved.map((kept) => `${v.shape(kept.shape)} ${kept.dtype}`);
    return section("Saved for backward",
      h("p", null, arrays.length ? `${v.bytes(op.saved_bytes)}: ${arrays.join(", ")}` : "Nothing."),
      arrays.length > 0 && how("Arrays that other tensors hold anyway are counted."));
  }
})();
