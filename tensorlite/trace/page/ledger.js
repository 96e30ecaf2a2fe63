/* The ledger: how much of a parameter's gradient came by which path and from which frame of a
   residual block. The sums are formed here, from the parts shown. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const v = Flow.views;
  const { h, number, how, right } = v;

  const sum = (list) => list.reduce((a, b) => a + b, 0);

  Flow.panels.ledger = {
    title: "Ledger",
    render(body) {
      if (!tape.ledgers.length) {
        body.replaceChildren(h("h2", null, "Ledger"), h("p", null,
          "This recording has no ledger. ", h("code", null, "trace.record(ledger=True)"),
          " follows the parts of the gradient separately, from where the paths of a residual ",
          "block meet (residual branch, spatial skip, temporal skip) to every parameter."));
        return;
      }
      const { block, parameter } = store.state;
      const ledger = tape.ledgers.find((l) => l.block === block) || tape.ledgers.at(-1);
      const names = Object.keys(ledger.parameters);
      const name = names.includes(parameter) ? parameter : preferred(names);
      const blocks = choose("Paths of block", tape.ledgers.map((l) => l.block), ledger.block,
        (block) => store.set({ block }));
      body.replaceChildren(h("h2", null, "Ledger"), h("p", null,
        "Where the gradient of a parameter comes from: its parts by path and by frame, ",
        "followed separately from the place where the paths of a block meet."),
      ...(names.length ? view(ledger, name, names, blocks) : [h("div", { class: "choose" }, blocks),
        h("p", null, "The gradient that comes to this block is zero: there are no shares of it.")]));
    },
  };

  /* The parameter shown at first: one that all paths reach, so of the earliest layers. */
  const preferred = (names) => names.find((name) => /weight$/.test(name)) || names[0];

  function view(ledger, name, names, blocks) {
    const entry = ledger.parameters[name];
    const parts = ledger.parts.map((part, i) => ({ ...part, ...entry.parts[i] }));
    const rows = [...parts, { role: null, frame: null, ...entry.rest }];
    const byFrame = [...parts].sort((a, b) => a.frame - b.frame);
    const shared = rows.every((row) => row.share !== null);
    const frameName = (frame) => (frame === null ? "no frame" : `frame ${frame}`);
    return [
      h("div", { class: "choose" }, blocks,
        choose("Gradient of", names, name,
          (parameter) => store.set({ block: ledger.block, parameter }))),
      ...(!shared ? [h("p", null, "The whole gradient is ", entry.whole.norm === 0 ? "zero"
        : "not finite", ": there are no shares of it.")] : [
        h("h3", null, "By path"), totals(parts, entry.rest, (part) => part.role, v.role),
        h("h3", null, "By the frame that it goes back to"),
        totals(byFrame, entry.rest, (part) => part.frame, frameName),
        how("A share is ⟨part, whole⟩ / ⟨whole, whole⟩: the length of the part along the ",
          "whole gradient. Shares add up to 1; a negative one points against the whole.")]),
      h("h3", null, "Part by part"), table(rows, entry), agreement(rows, entry),
    ];
  }

  function choose(label, options, chosen, changed) {
    const select = h("select", { onchange: () => changed(select.value) },
      options.map((option) => h("option", { value: option, selected: option === chosen }, option)));
    return h("label", null, `${label} `, select);
  }

  /* Bars from a zero line: to the right with the whole gradient, to the left against it. */
  function bars(shares) {
    const low = Math.min(0, ...shares);
    const span = Math.max(0, ...shares) - low || 1;
    const percent = (share) => `${(100 * share) / span}%`;
    return (share, role) => h("div", { class: "bar", "aria-hidden": "true" },
      h("b", { style: `left:${percent(-low)}` }),
      h("i", { class: KINDS[role],
        style: `left:${percent(Math.min(0, share) - low)};width:${percent(Math.abs(share))}` }));
  }

  const KINDS = { "residual branch": "residual", "spatial skip": "spatial",
    "temporal skip": "temporal" };

  /* Totals of shares by some key, and of what comes by other ways. */
  function totals(parts, rest, keyOf, show) {
    const found = new Map();
    parts.forEach((part) => found.set(keyOf(part), (found.get(keyOf(part)) || 0) + part.share));
    const bar = bars([...found.values(), rest.share]);
    const line = (label, share, key) => h("tr", null, h("th", { scope: "row" }, label),
      right(number(share)), h("td", null, bar(share, key)));
    return h("table", { class: "bars" }, h("tbody", null,
      [...found].map(([key, share]) => line(show(key), share, key)),
      line("by other ways", rest.share, null)));
  }

  const shareOf = (share) => (share === null ? "–" : number(share));
  const totalOf = (rows, i) => sum(rows.map((row) => row.values[i]));

  function table(rows, entry) {
    const { where, shape, whole, run } = entry;
    const bar = bars(rows.map((row) => row.share));
    const head = (kind, word) => h("th", { scope: "col", class: kind }, word);
    const size = (content) => h("td", { class: "size right" }, content);
    const drawn = (content) => h("td", { class: "drawn" }, content);
    const elements = (values) => values.map((value) => h("td", { class: "element right" }, value));
    const part = (row) => h("tr", null,
      h("th", { scope: "row" }, row.role === null ? "by other ways" : v.role(row.role)),
      right(row.frame), size(number(row.norm)), size(shareOf(row.share)),
      drawn(bar(row.share, row.role)), elements(row.values.map(number)));
    const foot = (kind, title, norm, share, values) => h("tr", { class: kind },
      h("th", { scope: "row", colspan: 2 }, title), size(norm), size(share), drawn(),
      elements(values));
    const less = (value, i) => (value === null ? "–" : number(totalOf(rows, i) - value));
    return v.scrolling("Parts of the gradient", "scroll wide", h("table", { class: "plain ledger" },
      h("thead", null, h("tr", null, head(null, "path"), head("right", "frame"),
        head("size right", "norm"), head("size right", "share"), drawn(),
        where.map((flat) => head("element right", v.elementName(flat, shape))))),
      h("tbody", null, rows.map(part)),
      h("tfoot", null,
        foot("total", "sum of the above", null, shareOf(rows.some((row) => row.share === null) ? null
          : sum(rows.map((row) => row.share))),
          where.map((_, i) => number(totalOf(rows, i)))),
        foot("whole", "whole, followed as one", number(whole.norm), null, whole.values.map(number)),
        run && foot("run", "gradient in this run", number(run.norm), null, run.values.map(number)),
        run && foot("less", "sum less that", null, null, run.values.map(less)))));
  }

  /* What the sum comes to, and how near it is to the gradient of the run itself. */
  function agreement(rows, entry) {
    const { where, whole, every, shape, error } = entry;
    const total = shape.reduce((n, m) => n * m, 1);
    const largest = Math.max(...whole.values.map(Math.abs)) || 1;
    const off = Math.max(0, ...whole.values.map((value, i) => Math.abs(totalOf(rows, i) - value)));
    return h("section", null,
      h("p", null, every ? `All ${total} elements are shown. `
        : `${where.length} of ${total} elements are shown. `,
      "The parts shown add up to the whole, followed as one, to ", number(off / largest),
      " of its largest element shown; over all elements the recording found ", number(error), "."));
  }
})();
