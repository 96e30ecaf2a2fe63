/* How things look that several panels show: numbers, names, arrays as tables and as pictures,
   histograms, and gradients that are not there yet. Each function makes an element. */
(function () {
  "use strict";

  const { tape, store } = Flow;
  const { tensors, ops } = tape;

  /* An element; attributes as in HTML, children elements, text or null. */
  function h(tag, attributes, ...children) {
    const element = tag.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    const missing = (value) => value === null || value === undefined || value === false;
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (!missing(value)) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => !missing(child)));
    return element;
  }

  // ---- numbers and names -------------------------------------------------------------------

  /* Few significant digits; what is not a number (NaN, infinite) has no value in the tape. */
  function digits(value, significant = 4) {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1e-3 && size < 1e5
      ? String(Number(value.toPrecision(significant)))
      : value.toExponential(significant - 1).replace("e+", "e");
    return text.replace("-", "−").replace("e-", "e−");
  }

  /* A number, with all its digits in `value` and when pointed at. */
  function number(value) {
    if (value === null) return h("span", { class: "number bad" }, digits(value));
    return h("data", { class: "number", value, title: value }, digits(value));
  }

  /* The norm of an array; with NaN or infinite elements it is that of the others, and says so. */
  function norm({ norm: value, nonfinite }) {
    return [number(value), nonfinite > 0 && h("span", { class: "bad",
      title: `${nonfinite} elements are NaN or infinite; this is the norm of the others` },
    ` ⚠ ${nonfinite} not finite`)];
  }

  function shape(of) {
    return of.length === 0 ? "scalar" : `(${of.join(", ")}${of.length === 1 ? "," : ""})`;
  }

  function bytes(count) {
    if (count < 1024) return `${count} B`;
    const kilo = count / 1024;
    return kilo < 1024 ? `${kilo.toFixed(1)} KiB` : `${(kilo / 1024).toFixed(1)} MiB`;
  }

  function frameWords(frames) {
    if (!frames || !frames.length) return "";
    if (frames.length === 1) return `frame ${frames[0]}`;
    const runs = frames.every((t, i) => i === 0 || t === frames[i - 1] + 1);
    return runs ? `frames ${frames[0]}–${frames[frames.length - 1]}`
      : `frames ${frames.join(", ")}`;
  }

  /* What a tensor is, after its name: ", output of relu of block1.0". */
  function origin(t) {
    const { op, kind } = tensors[t];
    return op === null ? `, ${kind}` : `, output of ${Flow.opWords(op)}`;
  }

  /* A tensor's name; of a number that the program gave no name, the number: "2 (%3)". */
  function nameOf(t) {
    const { name, op, value } = tensors[t];
    const isNumber = op === null && name.startsWith("%") && value && value.values
      && value.values.length === 1;
    return isNumber ? `${digits(value.values[0])} (${name})` : Flow.tensorWords(t);
  }

  /* A button that selects a tensor, an op or a module wherever it is shown. */
  function selector(selected, text, label) {
    return h("button", {
      type: "button", class: "link", "data-select": selected, title: label,
      "aria-pressed": String(store.state.selected === selected),
    }, text);
  }
  const tensorLink = (t) => selector(`tensor:${t}`, nameOf(t),
    `Select ${tensors[t].name}${origin(t)}`);
  const opLink = (op) => selector(`op:${op}`, ops[op].op, `Select op ${ops[op].op}`);
  const moduleLink = (path) => selector(`module:${path}`, path, `Select module ${path}`);

  /* A button that goes to a step; the number is the one in the page's heading. */
  function stepLink(step, text) {
    const words = text || `step ${step + 1}`;
    return h("button", { type: "button", class: "link", "data-step": step }, words);
  }

  const ROLES = { "residual branch": "residual", "spatial skip": "spatial",
    "temporal skip": "temporal" };
  const ARROWS = { residual: "∿", spatial: "↓", temporal: "↙" };
  function role(name) {
    const kind = ROLES[name];
    const text = kind ? `${ARROWS[kind]} ${name}` : name;
    return name && h("span", { class: `badge ${kind || ""}` }, text);
  }

  /* An element of an array by its index: "[0, 2, 1]". */
  function elementName(flat, of) {
    const index = [];
    for (const n of [...of].reverse()) {
      index.unshift(flat % n);
      flat = Math.floor(flat / n);
    }
    return `[${index.join(", ")}]`;
  }

  // ---- pieces of panels --------------------------------------------------------------------

  const how = (...words) => h("p", { class: "how" }, words);
  const section = (title, ...children) => h("section", null, h("h3", null, title), children);
  const right = (content) => h("td", { class: "right" }, content);

  function table(heads, rows) {
    return h("table", { class: "plain" },
      h("thead", null, h("tr", null, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", null, rows));
  }

  /* Something that may be wider or higher than its place; the keyboard can scroll it too. */
  function scrolling(label, kind, child) {
    return h("div", { class: kind, tabindex: 0, role: "group", "aria-label": label }, child);
  }

  // ---- colours -----------------------------------------------------------------------------

  // Blue, white, orange: the colour-blind tell them apart, and the middle is 0.
  const DIVERGING = [[8, 56, 110], [66, 133, 190], [170, 205, 230], [248, 248, 248],
    [246, 196, 148], [214, 116, 36], [122, 50, 4]];
  // From light to dark as the size grows; even steps of lightness, so that grey prints show it too.
  const RISING = [[255, 247, 219], [249, 209, 125], [235, 153, 78], [199, 92, 72], [131, 48, 86],
    [54, 20, 64]];

  function along(colours, at) {
    const place = Math.max(0, Math.min(1, at)) * (colours.length - 1);
    const low = Math.min(colours.length - 2, Math.floor(place));
    return colours[low].map((c, i) => Math.round(c + (colours[low + 1][i] - c) * (place - low)));
  }
  const diverging = (value, most) => along(DIVERGING, most > 0 ? 0.5 + value / (2 * most) : 0.5);
  const rising = (at) => along(RISING, at);

  /* Black or white: whichever can be read on the colour. */
  function ink(rgb) {
    const linear = (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  }
  const painted = (rgb) => `background:rgb(${rgb.join(" ")});color:${ink(rgb)}`;

  function scaleBar(colours, labels) {
    const stops = colours.map((c) => `rgb(${c.join(" ")})`).join(",");
    return h("div", { class: "scale" },
      h("div", { class: "scale-bar", style: `background:linear-gradient(to right,${stops})` }),
      h("div", { class: "scale-labels" }, labels.map((label) => h("span", null, label))));
  }

  // ---- arrays ------------------------------------------------------------------------------

  const product = (of) => of.reduce((n, m) => n * m, 1);

  /* The matrices that an array is laid out as: {title, rows, columns, at(i, j): flat index}.
     A layer's weights (rows, columns, in, out) and images (n, rows, columns, channel) are shown
     as planes of rows and columns; other arrays by their last two axes. */
  function matrices(of, weights) {
    const rank = of.length;
    if (rank < 2) return [{ title: "", rows: 1, columns: of[0] ?? 1, at: (i, j) => j }];
    const [a, b] = rank === 4 ? (weights ? [0, 1] : [1, 2]) : [rank - 2, rank - 1];
    const others = of.map((_, axis) => axis).filter((axis) => axis !== a && axis !== b);
    const strides = of.map((_, axis) => product(of.slice(axis + 1)));
    return Array.from({ length: product(others.map((axis) => of[axis])) }, (_, k) => {
      let rest = k;
      let offset = 0;
      const index = of.map(() => ":");
      for (const axis of [...others].reverse()) {
        index[axis] = rest % of[axis];
        offset += index[axis] * strides[axis];
        rest = Math.floor(rest / of[axis]);
      }
      return {
        title: others.length ? `[${index.join(", ")}]` : "",
        rows: of[a], columns: of[b], at: (i, j) => offset + i * strides[a] + j * strides[b],
      };
    });
  }

  /* All values of a small array, each on the colour of its size. */
  function valuesTable(summary, { weights = false, most = largest([summary]) } = {}) {
    const { values } = summary;
    const look = (value) => (value === null ? { class: "bad" }
      : { style: painted(diverging(value, most)) });
    const cell = (value) => h("td", look(value), number(value));
    const parts = matrices(summary.shape, weights).map(({ title, rows, columns, at }) => {
      const row = (i) => Array.from({ length: columns }, (_, j) => cell(values[at(i, j)]));
      return h("table", { class: "values" }, title && h("caption", null, title),
        h("tbody", null, Array.from({ length: rows }, (_, i) => h("tr", null, row(i)))));
    });
    return scrolling("Values", "tables", parts);
  }

  /* The largest size of a value in what is drawn of some arrays, for one scale of colours. */
  function largest(summaries) {
    let most = 0;
    for (const summary of summaries) {
      if (!summary) continue;
      const drawn = summary.values ? [summary.values]
        : (summary.picture ? summary.picture.planes.map(planeValues) : []);
      for (const values of drawn) for (const v of values) most = Math.max(most, Math.abs(v));
    }
    return most;
  }

  const decoded = new WeakMap();
  function planeValues(plane) {
    if (!decoded.has(plane)) {
      const raw = Uint8Array.from(atob(plane.data), (letter) => letter.charCodeAt(0));
      const view = new DataView(raw.buffer);
      const value = (_, i) => view.getFloat32(4 * i, true);
      decoded.set(plane, Float32Array.from({ length: raw.length / 4 }, value));
    }
    return decoded.get(plane);
  }

  /* The planes of a picture side by side. Pointing at a pixel, or moving over a plane with the
     arrow keys, tells its value. `small`: thumbnails, which tell nothing. */
  function picture(summary, { small = false, most = largest([summary]), natural = false } = {}) {
    const { planes, height, width, kind, how } = summary.picture;
    const colour = kind === "rgb" && natural;
    const channels = kind === "rgb" ? 3 : 1;
    const readout = h("p", { class: "readout", "aria-live": "polite" },
      "Point at a picture to read its values.");
    const figures = planes.map((plane) => {
      const canvas = paint(plane, height, width, channels, colour, most);
      canvas.style.aspectRatio = `${width} / ${height}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${plane.title || "array"}, ${height} by ${width}`);
      if (!small) explorable(canvas, plane, height, width, channels, readout);
      const focus = plane.frame !== null && plane.frame === store.state.frame;
      const widest = (small ? 5 : 18) * (width / height); // rem: a tall plane is as high as that
      const style = height > width ? `max-width:${widest}rem` : null;
      return h("figure", { class: focus ? "focus" : null, style }, canvas,
        plane.title && h("figcaption", null, plane.title));
    });
    if (small) return h("div", { class: "planes small" }, figures);
    const words = how + (colour ? "; from its least value (black) to its largest (white)"
      : channels === 3 ? "; mean over 3 channels" : "");
    return h("div", { class: "picture" },
      h("div", { class: "planes" + (height * width <= 16 ? " tiny" : "") }, figures), readout,
      colour ? null : scaleBar(DIVERGING, [digits(-most), "0", digits(most)]),
      h("p", { class: "how" }, words));
  }

  function paint(plane, height, width, channels, colour, most) {
    const values = planeValues(plane);
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    let low = Infinity;
    let high = -Infinity;
    if (colour) {
      for (const v of values) {
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
    }
    for (let i = 0; i < height * width; i += 1) {
      const rgb = colour
        ? [0, 1, 2].map((c) => (255 * (values[3 * i + c] - low)) / (high - low || 1))
        : diverging(pixel(values, i, channels), most);
      image.data.set([...rgb, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function pixel(values, i, channels) {
    return channels === 1 ? values[i] : (values[3 * i] + values[3 * i + 1] + values[3 * i + 2]) / 3;
  }

  function explorable(canvas, plane, height, width, channels, readout) {
    const values = planeValues(plane);
    let row = 0;
    let column = 0;
    const tell = () => {
      const i = row * width + column;
      const shown = channels === 1 ? [number(values[i])]
        : [0, 1, 2].flatMap((c) => [c ? ", " : "", number(values[3 * i + c])]);
      readout.replaceChildren(`${plane.title || "value"}, row ${row}, column ${column}: `,
        ...shown);
    };
    canvas.tabIndex = 0;
    const to = (i, j) => {
      row = Math.max(0, Math.min(height - 1, Math.floor(i)));
      column = Math.max(0, Math.min(width - 1, Math.floor(j)));
      tell();
    };
    canvas.addEventListener("pointermove", (event) => {
      const { left, top, width: across, height: down } = canvas.getBoundingClientRect();
      to(((event.clientY - top) / down) * height, ((event.clientX - left) / across) * width);
    });
    canvas.addEventListener("focus", tell);
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      to(row + move[0], column + move[1]);
    });
  }

  function histogram({ low, high, counts, of }) {
    const most = Math.max(...counts);
    const width = 100 / counts.length;
    const edge = (i) => digits(low + ((high - low) * i) / counts.length);
    const bars = counts.map((count, i) => {
      const height = (38 * count) / most;
      const place = { x: i * width + 0.15, width: width - 0.3, y: 40 - height, height };
      const words = `${edge(i)} to ${edge(i + 1)}: ${count}`;
      return h("svg:rect", place, h("svg:title", null, words));
    });
    const inside = low < 0 && high > 0;
    const zero = (100 * -low) / (high - low);
    return h("figure", { class: "histogram" },
      h("svg:svg", { viewBox: "0 0 100 41", preserveAspectRatio: "none", role: "img",
        "aria-label": `Histogram from ${digits(low)} to ${digits(high)}` },
      h("svg:line", { x1: 0, x2: 100, y1: 40, y2: 40 }), bars,
      inside ? h("svg:line", { class: "zero", x1: zero, x2: zero, y1: 0, y2: 41 }) : null),
      h("div", { class: "scale-labels" }, h("span", null, digits(low)),
        inside ? h("span", { class: "at-zero", style: `left:${zero}%` }, "0") : null,
        h("span", null, digits(high))),
      h("figcaption", null, `${of} elements, by value`));
  }

  function statistics(summary) {
    const { norm, min, mean, max, values, nonfinite } = summary;
    const entry = (name, value, kind) => h("div", { class: kind },
      h("dt", null, name), h("dd", null, value));
    const spread = values && values.length === 1 ? null
      : [entry("min", number(min)), entry("mean", number(mean)), entry("max", number(max))];
    return h("dl", { class: "statistics" }, entry("norm", number(norm)), spread,
      nonfinite ? entry("⚠ NaN or infinite", `${nonfinite} elements`, "bad") : null);
  }

  /* All there is to see of an array. */
  function array(summary, options = {}) {
    return h("div", { class: "array" }, statistics(summary),
      summary.values && summary.values.length ? valuesTable(summary, options) : null,
      summary.picture ? picture(summary, options) : null,
      summary.histogram ? histogram(summary.histogram) : null);
  }

  /* Whether a gradient is there, in a sign and words: never as a zero. */
  function status(gradient) {
    if (gradient.status === "complete") {
      return h("span", { class: "status complete" }, gradient.expected > 1
        ? `● complete: sum of ${gradient.expected} pieces` : "● complete");
    }
    if (gradient.status === "partial") {
      return h("span", { class: "status partial" },
        `◐ partial: ${gradient.arrived} of ${gradient.expected} pieces`);
    }
    return h("span", { class: "status none" },
      gradient.expected ? "○ not computed yet" : "○ never computed");
  }

  function notYet(words) {
    return h("div", { class: "not-yet" }, h("span", null, words));
  }

  Flow.panels = {}; // by name {title, render(element)}: the files that follow add theirs
  Flow.views = {
    h, digits, number, norm, shape, bytes, frameWords, nameOf, elementName,
    tensorLink, opLink, moduleLink, stepLink, role, how, section, right, table, scrolling,
    rising, painted, scaleBar, RISING,
    valuesTable, picture, largest, array, statistics, status, notYet,
  };
})();
