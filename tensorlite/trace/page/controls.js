/* The header, the tabs and the keys; and the start of it all, when every other script is there. */
(function () {
  "use strict";

  const { tape, store, meetings } = Flow;
  const { state } = store;
  const { h } = Flow.views;
  const count = tape.events.length;
  const byId = (id) => document.getElementById(id);

  // ---- stepping ----------------------------------------------------------------------------

  const nextMeeting = () => meetings.find((step) => step > state.step);
  const lastMeeting = () => meetings.filter((step) => step < state.step).at(-1);
  const go = (step) => {
    if (step !== undefined) store.set({ step });
  };

  const SPEEDS = [0.5, 1, 2, 5, 10];
  let player = null;
  function play(on) {
    clearInterval(player);
    player = null;
    if (on) {
      if (state.step >= count - 1) go(-1);
      const advance = () => (state.step >= count - 1 ? play(false) : buttons.next());
      player = setInterval(advance, 1000 / Number(byId("speed").value));
    }
    byId("play").setAttribute("aria-pressed", String(on));
    byId("play").lastElementChild.textContent = on ? "Pause" : "Play";
    if (!on) announce(); // what was not said while it played
  }
  const toggle = () => play(player === null);

  const buttons = {
    first: () => go(-1), back: () => go(state.step - 1), play: toggle,
    next: () => go(state.step + 1), meeting: () => go(nextMeeting()), last: () => go(count - 1),
  };
  for (const [id, act] of Object.entries(buttons)) byId(id).addEventListener("click", act);

  byId("speed").append(...SPEEDS.map((speed) => (
    h("option", { value: speed, selected: speed === 2 }, `${speed} / s`))));
  byId("speed").addEventListener("change", () => {
    if (player !== null) play(true);
  });

  const slider = byId("slider");
  slider.min = 0;
  slider.max = count;
  slider.addEventListener("input", () => go(Number(slider.value) - 1));

  /* Marks over the slider: where backward starts, where paths meet, where something is wrong. */
  function marks() {
    const at = (step) => `--at:${count ? (step + 1) / count : 0}`;
    const bad = new Set(Flow.failures.map((failure) => failure.step));
    const mark = (kind) => (step) => h("i", { class: `mark ${kind}`, style: at(step) });
    const steps = tape.events.map((_, step) => step);
    const turns = steps.filter((step) => step === 0 || kindAt(step) !== kindAt(step - 1));
    // A phase is as long as it lasts; one too short for its name goes without.
    const phase = (step, i) => h("span", { class: `phase ${kindAt(step)}`,
      style: `${at(step - 1)};--long:${((turns[i + 1] ?? count) - step) / count}` },
    h("span", null, kindAt(step)));
    byId("marks").append(
      ...turns.map(phase),
      ...meetings.filter((step) => !bad.has(step)).map(mark("meeting")),
      ...[...bad].map(mark("wrong")));
  }

  const kindAt = (step) => (tape.events[step].kind === "forward" ? "forward" : "backward");

  function showStep() {
    const { step } = state;
    const words = Flow.describe(step);
    const kind = step < 0 ? "" : kindAt(step);
    const met = meetings.includes(step);
    const place = `${step + 1} of ${count}`;
    byId("where").replaceChildren(h("b", null, place), ": ", h("span", { class: kind }, words),
      met ? h("span", { class: "badge meeting" }, "⋈ paths meet") : "");
    byId("where").title = words;
    if (player === null) announce();
    slider.value = step + 1;
    slider.setAttribute("aria-valuetext", `${place}: ${words}`);
    byId("first").disabled = byId("back").disabled = step < 0;
    byId("next").disabled = byId("last").disabled = step >= count - 1;
    byId("play").disabled = !count;
    byId("meeting").disabled = nextMeeting() === undefined;
  }

  /* Tells a screen reader the step; not while playing, faster than can be heard. */
  function announce() {
    const met = meetings.includes(state.step) ? "; paths meet here" : "";
    byId("live").textContent = `Step ${state.step + 1} of ${count}: ${Flow.describe(state.step)}${met}`;
  }

  // ---- panels ------------------------------------------------------------------------------

  const tabs = new Map();
  const bodies = new Map();
  Flow.PANELS.forEach((name, i) => {
    const { title } = Flow.panels[name];
    const tab = h("button", { type: "button", role: "tab", id: `tab-${name}`,
      "aria-controls": `panel-${name}`, title: `${title} (${i + 1})`,
      onclick: () => store.set({ panel: name }) }, h("kbd", null, `${i + 1}`), ` ${title}`);
    const body = h("div", { role: "tabpanel", id: `panel-${name}`,
      "aria-labelledby": `tab-${name}`, tabindex: 0, class: "panel" });
    tabs.set(name, tab);
    bodies.set(name, body);
  });
  byId("tabs").append(...tabs.values());
  byId("panel-bodies").append(...bodies.values());
  byId("tabs").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const names = Flow.PANELS;
    store.set({ panel: names[(names.indexOf(state.panel) + move + names.length) % names.length] });
    tabs.get(state.panel).focus();
  });

  /* Draw the panel that is shown, and it alone. */
  function showPanel(changed) {
    const body = bodies.get(state.panel);
    for (const [name, tab] of tabs) {
      tab.setAttribute("aria-selected", String(name === state.panel));
      tab.tabIndex = name === state.panel ? 0 : -1;
      bodies.get(name).hidden = name !== state.panel;
    }
    const focused = body.contains(document.activeElement);
    Flow.panels[state.panel].render(body);
    if (focused && !body.contains(document.activeElement)) body.focus({ preventScroll: true });
    if (changed && changed.has("panel")) body.scrollTop = 0;
  }

  // Whatever names a step, a panel or something to select, anywhere on the page.
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-step],[data-select],[data-panel]");
    if (!target) return;
    const { step, select, panel, tensor } = target.dataset;
    if (step !== undefined) {
      const selected = tensor ? { selected: `tensor:${tensor}` } : {};
      store.set({ step: Number(step), ...selected }, { jump: true });
    }
    if (select) store.set({ selected: state.selected === select ? null : select });
    if (panel) store.set({ panel });
  });

  // ---- the rest of the header --------------------------------------------------------------

  byId("toggle-outline").addEventListener("click", () => store.set({ outline: !state.outline }));
  function showOutline() {
    byId("outline").hidden = !state.outline;
    byId("toggle-outline").setAttribute("aria-pressed", String(state.outline));
  }

  byId("copy").addEventListener("click", async () => {
    const button = byId("copy");
    const said = (await copied(Flow.link())) ? "Copied" : "Not copied";
    button.textContent = said;
    byId("live").textContent = said;
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  });

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = h("textarea", { class: "visually-hidden" }, text); // a page without permission
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  const KEYS = [
    ["→ or n", "next step"], ["← or b", "step back"], ["Home, End", "to the start, to the end"],
    ["Space", "play, pause"], ["m, Shift+m", "to the next meeting of paths, to the one before"],
    ["1 … 5", "panels"], ["g", "to the graph, and on to the outline"],
    ["Enter", "open or close the selected module"],
    ["Escape", "select what is around it; then nothing"], ["?", "this help"]];
  const THERE = [
    ["↑ ↓ or w s", "in the graph: along an edge, towards the loss or the input"],
    ["a d", "in the graph: to the frame before, to the one after"],
    ["+ − 0", "in the graph: nearer, farther, the whole"],
    ["↑ ↓ ← →", "in the outline: up and down, close and open; on a picture: its values; "
      + "on the tabs: the next panel"]];
  const SIGNS = [
    ["⋈", "paths meet: their gradients add"],
    ["○ hatched", "gradient not computed yet; that is not zero"],
    ["◐", "partial: a sum that still lacks pieces"], ["●", "complete"],
    ["✗", "wrong: differs from finite differences, or is not the sum"],
    ["∿ ↓ ↙", "residual branch, spatial skip, temporal skip"]];
  const list = (tag, rows) => h("dl", { class: "keys" }, rows.map(([key, what]) => (
    h("div", null, h("dt", null, h(tag, null, key)), h("dd", null, what)))));
  byId("help-body").append(list("kbd", KEYS), h("h3", null, "Where the focus is"),
    list("kbd", THERE), h("h3", null, "Signs"), list("b", SIGNS),
    h("p", null, "The address of the page holds the step and what is open and selected: ",
      "“Copy link” leads others to what you see."));
  const showHelp = () => byId("help").showModal();
  byId("help-button").addEventListener("click", showHelp);

  // ---- keys --------------------------------------------------------------------------------

  const ACTS = {
    ArrowRight: buttons.next, n: buttons.next, ArrowLeft: buttons.back, b: buttons.back,
    Home: buttons.first, End: buttons.last, " ": toggle,
    m: buttons.meeting, M: () => go(lastMeeting()), "?": showHelp,
    Enter: openOrClose, Escape: outwards, g: focusGraph,
  };
  Flow.PANELS.forEach((name, i) => { ACTS[i + 1] = () => store.set({ panel: name }); });

  document.addEventListener("keydown", (event) => {
    const act = ACTS[event.key];
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (!act || modified || event.defaultPrevented || byId("help").open || isOwn(event)) return;
    event.preventDefault();
    act();
  });

  /* Whether what has the focus does something with the key itself. */
  function isOwn({ target, key }) {
    const arrow = /^(Arrow|Home|End)/.test(key);
    if (target.matches("select, textarea")) return true;
    if (target.matches("input")) return arrow;
    if (target.matches("button, summary, a, [role=treeitem]")) return [" ", "Enter"].includes(key);
    return target.matches(".scroll, .tables, .grid-scroll, pre") && arrow;
  }

  function openOrClose() {
    const { kind, key } = Flow.parse(state.selected);
    if (kind !== "module") return;
    const open = new Set(state.open);
    if (!open.delete(key)) open.add(key);
    store.set({ open });
  }

  /* Select the module around what is selected; of the outermost, nothing. */
  function outwards() {
    const { kind, key } = Flow.parse(state.selected);
    const op = kind === "op" ? key : kind === "tensor" ? tape.tensors[key].op : null;
    const around = kind === "module" ? Flow.parentOf(key) : op === null ? "" : tape.ops[op].module;
    store.set({ selected: around ? `module:${around}` : null });
  }

  function focusGraph() {
    const [graph, outline] = [byId("graph"), byId("outline")];
    const target = graph.contains(document.activeElement) && state.outline ? outline : graph;
    const inside = target.querySelector("[tabindex='0'], button, a");
    (inside || target).focus();
  }

  // ---- start -------------------------------------------------------------------------------

  const SHOWN_IN_PANELS = ["step", "selected", "frame", "panel", "block", "parameter", "depth"];
  store.subscribe((_, changed) => {
    if (changed.has("step")) showStep();
    if (changed.has("outline")) showOutline();
    if (SHOWN_IN_PANELS.some((key) => changed.has(key))) showPanel(changed);
  });
  byId("graph").tabIndex = -1;
  byId("outline").tabIndex = -1;
  store.restore();
  showOutline();
  Flow.outline.mount(byId("outline")); // before the graph, which takes the room that is left
  Flow.graph.mount(byId("graph"));
  marks();
  showStep();
  showPanel();
  addEventListener("resize", () => state.panel === "grid" && showPanel());
})();
