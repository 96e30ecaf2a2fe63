/* The panel of arrays: the value of a tensor and its gradient, as they are at the step. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const { tensors, ops } = tape;
  const v = Flow.views;
  const { h, how, section } = v;

  Flow.panels.arrays = {
    title: "Arrays",
    render(body) {
      const { op, t } = subject();
      if (t === null) {
        body.replaceChildren(h("h2", null, "Arrays"),
          h("p", null, "Select a tensor or an op, or take a step, to see its arrays."));
        return;
      }
      const tensor = tensors[t];
      const at = Flow.at(store.state.step);
      const weights = tensor.kind === "parameter" || isWeight(t);
      const about = [tensor.kind, v.shape(tensor.shape), tensor.dtype, v.frameWords(tensor.frames)];
      body.replaceChildren(...[
        op !== null && neighbours(op, t),
        h("h2", null, v.nameOf(t)), how(about.filter(Boolean).join(" · ")),
        section("Value", at.valueKnown(t) ? v.array(tensor.value, { weights, natural: true })
          : v.notYet("not computed yet: forward has not come here")),
        section(`Gradient, d(loss)/d(${tensor.name}), at this step`, gradientView(t, at, weights)),
        numericView(t, at),
      ].filter(Boolean));
    },
  };

  /* The tensor that is shown, and the op beside whose other tensors it is: what is selected, else
     the output of the step's op. */
  function subject() {
    const { kind, key } = Flow.parse(store.state.selected);
    const now = Flow.opAt(store.state.step);
    if (kind === "tensor") {
      const touched = now !== null && [...ops[now].inputs, ops[now].output].includes(key);
      return { t: key, op: touched ? now : tensors[key].op ?? Flow.consumers[key][0] ?? null };
    }
    const op = kind === "op" ? key : kind === "module" ? Flow.modules.get(key).ops.at(-1) : now;
    return { op, t: op === null ? null : ops[op].output };
  }

  /* Whether a layer uses it as its weights, whose first axes are rows and columns. */
  function isWeight(t) {
    return Flow.consumers[t].some((op) => ops[op].slots[ops[op].inputs.indexOf(t)] === "weight");
  }

  function neighbours(number, t) {
    const op = ops[number];
    const chip = (slot, other) => h("button", { type: "button", class: "chip",
      "data-select": `tensor:${other}`, "aria-pressed": String(other === t) },
    h("code", null, slot), ` ${v.nameOf(other)}`);
    return h("nav", { class: "chips", "aria-label": "Tensors of the op" },
      h("span", { class: "how" }, `${op.op}:`),
      op.inputs.map((input, i) => input !== null && chip(op.slots[i], input)),
      chip("→ output", op.output));
  }

  function gradientView(t, at, weights) {
    const gradient = at.gradient(t);
    const complete = () => ["Complete at ", v.stepLink(Flow.completeStep(t)), "."];
    if (!gradient.expected) return v.notYet("The program never computes this gradient.");
    if (gradient.status === "none") return [v.notYet("not computed yet"), how(complete())];
    return [h("p", null, v.status(gradient), ", since ", v.stepLink(gradient.eventIndex), ". ",
      gradient.status === "partial" && complete()), v.array(gradient.summary, { weights })];
  }

  function numericView(t, at) {
    const { numeric, shape } = tensors[t];
    if (!numeric) return null;
    return section("Beside finite differences of the whole program",
      at.gradient(t).status === "complete" ? Flow.check.compared(numeric, shape)
        : v.notYet("compared when the gradient is complete"));
  }
})();
