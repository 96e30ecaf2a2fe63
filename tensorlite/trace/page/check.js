/* The panel of the gradient check: derivatives by finite differences beside those of backward, and
   the places where they part. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const { tensors, ops, events } = tape;
  const v = Flow.views;
  const { h, number, how, section } = v;

  const single = events.flatMap((event) => event.pieces.filter((piece) => piece.check));
  const whole = tensors.map((_, t) => t).filter((t) => tensors[t].numeric);

  Flow.panels.check = {
    title: "Check",
    render(body) {
      const parts = [h("h2", null, "Gradient check"), verdict(), failures()];
      if (single.length || whole.length) parts.push(...atThisStep());
      body.replaceChildren(...parts.filter(Boolean));
    },
  };

  /* What the whole recording says. */
  function verdict() {
    const box = (kind, title, ...words) => h("div", { class: kind },
      h("strong", null, title), words);
    if (Flow.failures.length) {
      const [{ step, what }] = Flow.failures;
      return box("alarm", "✗ Backward is wrong at ",
        v.stepLink(step, Flow.opWords(events[step].op)), `, step ${step + 1} of ${events.length}. `,
        { sum: "What was added up there is not the sum.",
          check: "What it sends is not the derivative of the op.",
          unsent: "It sends nothing where the derivative of the op is not zero." }[what]);
    }
    const wrong = whole.filter((t) => !tensors[t].numeric.right);
    if (wrong.length) {
      return box("alarm", "✗ Backward is wrong: ", `${wrong.length} gradients differ from `,
        "finite differences of the whole program, though each op that was compared is right: ",
        wrong.map((t) => [v.tensorLink(t), " "]));
    }
    if (!single.length && !whole.length) {
      return how("Recorded without finite differences; ",
        h("code", null, "trace.record(check=True)"), " computes them beside every gradient.");
    }
    const checks = [...single.map((piece) => piece.check), ...whole.map((t) => tensors[t].numeric)];
    const some = checks.filter((check) => !finite(check)).length;
    return box("fine", "✓ Analytic and numeric agree: ",
      `${single.length} gradients of single ops`,
      whole.length > 0 && ` and ${whole.length} of the whole program`,
      some > 0 && `, where they are finite; ${some} have elements that are not`, ".");
  }

  /* Whether every number compared is one. */
  const finite = ({ analytic, numeric }) => ![...analytic, ...numeric].includes(null);

  /* Every place where something is wrong, in the order of the walk. */
  function failures() {
    if (!Flow.failures.length) return null;
    return section("Where analytic and numeric part",
      h("ol", { class: "failures" }, Flow.failures.map(({ step, slot, what }, i) => {
        const { op } = events[step];
        return h("li", null, v.stepLink(step, Flow.opWords(op)), `, to ${ops[op].slots[slot]}: `,
          { sum: "the sum", check: "the gradient sent", unsent: "nothing sent" }[what],
          i === 0 && h("b", null, " — first in the walk"));
      })));
  }

  /* Of the op that the walk passes each gradient it sends; of its output, or of the tensor
     selected, that of the whole program. */
  function atThisStep() {
    const { kind, key } = Flow.parse(store.state.selected);
    const event = events[store.state.step];
    const passing = event !== undefined && event.kind === "backward";
    const op = passing ? ops[event.op] : null;
    const t = kind === "tensor" ? key : passing ? op.output : null;
    return [
      passing ? section(`At this step: ${Flow.opWords(event.op)} by itself`,
        [...event.pieces, ...event.unsent].map((piece) => h("section", { class: "piece" },
          h("header", null, h("code", null, op.slots[piece.slot]), " ",
            v.tensorLink(piece.tensor), " ", v.role(op.roles[piece.slot])),
          piece.check ? compared(piece.check, tensors[piece.tensor].shape)
            : how("Not compared."))))
        : how("Go to a backward step to compare what its op sends, element by element."),
      t !== null && tensors[t].numeric ? section(
        ["Whole program: d(loss)/d(", v.tensorLink(t), ")"],
        compared(tensors[t].numeric, tensors[t].shape)) : null,
    ];
  }

  /* One comparison: its outcome, and element by element. */
  function compared(check, shape) {
    const { where, analytic, numeric, smooth, along } = check;
    const total = shape.reduce((n, m) => n * m, 1);
    const kinks = smooth.filter((is) => !is).length;
    const difference = (i) => (analytic[i] === null || numeric[i] === null ? "–"
      : number(analytic[i] - numeric[i]));
    const rows = where.map((flat, i) => h("tr", { class: smooth[i] ? null : "rough" },
      h("th", { scope: "row" }, v.elementName(flat, shape)), v.right(number(analytic[i])),
      v.right(number(numeric[i])), v.right(difference(i)), h("td", null, smooth[i] ? "" : "kink")));
    return h("div", { class: "check" },
      h("p", { class: check.right ? "good" : "bad" },
        h("strong", null, check.right ? "✓ agree" : "✗ differ"), "; the worst difference is ",
        number(check.worst), " of what is tolerated. ",
        check.every ? "Every element was compared."
          : `${where.length} of ${total} elements were compared.`,
        kinks > 0 && ` At ${kinks} the function has a kink: no derivative to compare.`),
      along && h("p", null, "Along one random direction, which every element has a part in: ",
        "analytic ", number(along.analytic), ", numeric ", number(along.numeric), "."),
      v.scrolling("Elements compared", "scroll",
        v.table(["element", "analytic", "numeric", "difference", ""], rows)));
  }

  Flow.check = { verdict, compared, finite };
})();
