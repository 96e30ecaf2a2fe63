/* How the graph looks: cytoscape's style sheet, in the colours of the page. */
(() => {
  "use strict";

  const FONT = { name: 16, caption: 13, edge: 13, far: 26 };

  /* The style sheet, with the colours that `host` has now (light or dark). `far`: for a view from so
     far that only names can be read, and these if they are larger (each as large as its node
     allows, data `far`). */
  function look(host, far) {
    const css = getComputedStyle(host);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const sans = css.fontFamily;
    const text = { "font-family": sans, color: colour("text") };
    const kinds = [["plain", colour("strong-line"), [5, 4]], ["residual", colour("residual"), [9, 3]],
      ["spatial", colour("spatial"), [3, 4]], ["temporal", colour("temporal"), [14, 5]],
      ["parameter", colour("muted"), [2, 3]]];
    return [
      { selector: "core", style: { "active-bg-opacity": 0, "selection-box-opacity": 0 } },
      { selector: "node", style: { ...text, width: "data(width)", height: "data(height)",
        label: "data(label)", "text-valign": "center", "text-halign": "center",
        "font-size": FONT.name, "font-weight": 600, "text-margin-y": -9, shape: "round-rectangle",
        "corner-radius": 8, "background-color": colour("surface"), "border-width": 2,
        "border-color": colour("forward"), "z-index": 20, "z-index-compare": "manual",
        "min-zoomed-font-size": 5, "overlay-opacity": 0, "underlay-opacity": 0 } },
      { selector: "node.module", style: { "border-width": 6, "border-style": "double" } },
      { selector: "node.tensor", style: { "corner-radius": 20, "font-style": "italic",
        "background-color": colour("raised") } },
      { selector: "node.parameter", style: { "font-size": FONT.caption, "font-weight": "normal",
        "text-margin-y": 0, "corner-radius": 4, "background-color": colour("parameter-soft"),
        "border-color": colour("parameter"), "border-width": 1.5 } },
      { selector: "node.passed", style: { "border-color": colour("backward"),
        "background-color": colour("backward-soft") } },
      { selector: "node.op.passed, node.tensor.passed", style: { "border-width": 3 } },
      { selector: "node.idle", style: { "border-style": "dashed", "border-width": 2,
        "border-color": colour("strong-line"), "background-color": colour("page"),
        color: colour("muted") } },
      { selector: "node.begun", style: { "border-color": colour("forward") } },
      { selector: "node.apart", style: { "border-style": "dotted", "border-color": colour("muted") } },
      { selector: "node.current", style: { "border-width": 5, "border-style": "solid",
        "underlay-color": colour("current"), "underlay-opacity": 0.75, "underlay-padding": 7 } },
      { selector: "node.wrong", style: { "border-color": colour("wrong"),
        "background-color": colour("wrong-soft") } },
      { selector: "node.box", style: { "background-color": colour("surface"),
        "background-opacity": 0.65, "border-color": colour("line"), "border-width": 1.5,
        "border-style": "solid", "corner-radius": 14, "z-index": "data(depth)" } },
      { selector: "node.title", style: { "background-opacity": 0.92, "border-width": 0,
        "text-wrap": "wrap", "text-margin-y": 0, "font-size": FONT.caption + 1, "line-height": 1.15,
        "z-index": 19 } },
      { selector: "node.caption", style: { "background-opacity": 0, "border-width": 0, events: "no",
        "font-size": FONT.caption, "font-weight": "normal", "text-margin-y": 0,
        color: colour("muted"), "z-index": 21 } },
      { selector: "node.caption.sent", style: { color: colour("backward"), "font-weight": 600 } },
      { selector: "node.caption.strong", style: { color: colour("text"), "font-weight": 600 } },
      { selector: "node.plus", style: { shape: "ellipse", "text-margin-y": 0, "font-size": 15,
        color: colour("meeting"), "border-color": colour("meeting"), "border-width": 1.5,
        "background-color": colour("surface"), events: "no", "z-index": 25 } },
      { selector: "node.plus.lit", style: { width: 27, height: 27, "font-size": 22,
        "background-color": colour("meeting"), color: colour("surface"),
        "underlay-color": colour("current"), "underlay-opacity": 0.8, "underlay-padding": 7,
        "underlay-shape": "ellipse" } },
      { selector: "edge", style: { ...text, "curve-style": "straight", width: "data(width)",
        label: "data(label)", "font-size": FONT.edge, "text-wrap": "wrap",
        "text-background-color": colour("page"), "text-background-opacity": 0.88,
        "text-background-padding": 2, "text-background-shape": "roundrectangle",
        "min-zoomed-font-size": 6, "arrow-scale": 0.9, "target-arrow-shape": "triangle",
        "z-index": 10, "z-index-compare": "manual", "overlay-opacity": 0, "underlay-opacity": 0 } },
      ...kinds.map(([kind, ink, dashes]) => ({ selector: `edge.${kind}`, style: {
        "line-color": ink, "target-arrow-color": ink, "source-arrow-color": ink,
        "line-dash-pattern": dashes } })),
      { selector: "edge.residual, edge.spatial, edge.temporal", style: {
        color: "data(ink)", "font-weight": 600 } },
      { selector: "edge.bent", style: { "curve-style": "round-segments", "segment-radii": 12,
        "segment-weights": "data(weights)", "segment-distances": "data(distances)",
        "edge-distances": "node-position" } },
      { selector: "edge[leave]", style: { "source-endpoint": "data(leave)",
        "target-endpoint": "data(enter)" } },
      { selector: "edge[room]", style: { "source-distance-from-node": "data(room)" } },
      { selector: "edge.leaving", style: { label: "", "source-label": "data(label)",
        "source-text-offset": "data(offset)" } }, // clear of the titles that it crosses
      { selector: "edge.waiting", style: { "line-style": "dashed", width: 1.75 } },
      { selector: "edge.temporal.waiting", style: { width: 4 } },
      { selector: "edge.apart", style: { "line-style": "dotted", "line-color": colour("line"),
        "target-arrow-color": colour("line"), width: 1.5 } },
      // Thousands of dashes a line, of a weight that is used a thousand times, take seconds to draw.
      { selector: "edge.long", style: { "line-style": "solid", "line-opacity": 0.55 } },
      { selector: "edge.idle", style: { "line-opacity": 0.55, "arrow-scale": 0.8 } },
      { selector: "edge.plain.passed", style: { "line-color": colour("backward"),
        "source-arrow-color": colour("backward") } },
      { selector: "edge.passed", style: { "line-style": "solid", "source-arrow-shape": "triangle",
        "target-arrow-shape": "none" } },
      { selector: "edge.temporal.passed", style: { "line-outline-width": 2,
        "line-outline-color": colour("temporal-soft") } },
      { selector: "edge.parameter", style: { label: "",
        "source-label": "data(label)", "source-text-offset": 32, "arrow-scale": 0.6,
        "z-index": 9 } },
      { selector: "edge.wrong", style: { "line-color": colour("wrong"), color: colour("wrong"),
        "source-arrow-color": colour("wrong"), "font-weight": 600 } },
      { selector: "edge.current", style: { "underlay-color": colour("current"),
        "underlay-opacity": 0.75, "underlay-padding": 6, "font-weight": 700, "z-index": 15 } },
      { selector: ".chosen", style: { "outline-width": 4, "outline-offset": 3,
        "outline-color": colour("accent") } },
      { selector: ".chosen-too", style: { "outline-width": 2, "outline-offset": 3,
        "outline-color": colour("accent"), "outline-style": "dashed" } },
      ...(far ? FROM_FAR : []),
    ];
  }

  const FROM_FAR = [
    { selector: "node.op, node.module, node.tensor", style: { "font-size": "data(far)",
      "text-margin-y": 0 } },
    { selector: "node.caption", style: { label: "" } },
  ];

  Flow.look = { look, FONT };
})();
