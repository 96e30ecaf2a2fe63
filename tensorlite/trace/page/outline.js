/* The outline: the same modules and ops as in the graph, as a tree to walk with the keyboard or to
   hear with a screen reader, each with the norm of its gradient as of the step. */
(() => {
  "use strict";
  const Flow = window.Flow;
  const { store } = Flow;
  const { tensors, ops } = Flow.tape;
  const { root, consumers, modules } = Flow.layout;
  const { several, size, opName } = Flow.labels;
  const { h } = Flow.views;

  let tree = null;
  const items = new Map(); // by "op:5" or "module:path": {key, element, ops, outputs, words, shows}
  let reached = null; // the key of the item that Tab comes to

  // ---- building --------------------------------------------------------------------------------

  /* What leaves a module: the results inside that are used outside, or not at all. */
  function outputsOf(module) {
    const inside = new Set(module.ops);
    return module.ops.map((i) => ops[i].output).filter((t) => tensors[t].requires_grad
      && (!consumers[t].length || consumers[t].some(({ op }) => !inside.has(op))));
  }

  function itemOf(child, level) {
    if (typeof child === "number") {
      return leaf(`op:${child}`, [child], opName(child), frame(child), level);
    }
    if (child.single && child.ops.length === 1) {
      const [i] = child.ops;
      return leaf(`op:${i}`, [i], child.name, ops[i].op, level, child.path);
    }
    const group = h("ul", { role: "group" });
    const { path, name, type } = child;
    const item = leaf(`module:${path}`, child.ops, name, type || "", level, path);
    item.outputs = outputsOf(child);
    item.path = child.path;
    item.element.append(group);
    group.append(...child.children.map((inner) => itemOf(inner, level + 1).element));
    return item;
  }

  /* Of what frame an op is, where it is of a single one. */
  function frame(i) {
    const { frames } = ops[i];
    return frames && frames.length === 1 && Flow.tape.frames > 1 ? `frame ${frames[0]}` : "";
  }

  function leaf(key, within, name, type, level, title = "") {
    const gradient = h("span", { class: "gradient" });
    const row = h("div", { class: "row", style: `--level: ${level}`, title },
      h("span", { class: "sign", "aria-hidden": "true" }),
      h("span", { class: "name" }, name), h("span", { class: "type" }, type), gradient);
    const item = { key, ops: within, outputs: within.map((i) => ops[i].output), gradient,
      name, type, element: h("li", { role: "treeitem", tabindex: "-1",
        "aria-level": level + 1, "data-key": key }, row), sign: row.firstChild };
    items.set(key, item);
    return item;
  }

  // ---- bringing it to a step -------------------------------------------------------------------

  /* The gradient of what leaves an item, in words. */
  function gradientOf(item, at) {
    const wanted = item.outputs.filter((t) => tensors[t].requires_grad);
    if (!wanted.length) return { text: "no gradient", none: true };
    const known = wanted.map((t) => at.gradient(t)).filter((g) => g.summary);
    if (!known.length) return { text: "not yet", none: true };
    const whole = known.length === wanted.length && known.every((g) => g.status === "complete");
    const text = several(known.map((g) => size(g.summary, null)));
    return { text: whole ? text : `${text} so far`, none: false };
  }

  function refresh() {
    const { step, selected, open } = store.state;
    const at = Flow.at(step);
    const current = step < 0 ? null : Flow.opAt(step);
    for (const item of items.values()) {
      const { text, none } = gradientOf(item, at);
      const expanded = item.path === undefined ? null : open.has(item.path);
      const shows = {
        text, none, expanded,
        done: item.ops.every((i) => at.done(i)),
        current: expanded !== true && item.ops.includes(current),
        selected: item.key === selectedKey(selected),
      };
      if (JSON.stringify(shows) !== item.shows) {
        item.shows = JSON.stringify(shows);
        show(item, shows);
      }
    }
  }

  function show(item, { text, none, expanded, done, current, selected }) {
    const { element: li, gradient } = item;
    gradient.textContent = text;
    gradient.classList.toggle("none", none);
    li.classList.toggle("idle", !done);
    li.setAttribute("aria-selected", selected);
    if (current) li.setAttribute("aria-current", "step");
    else li.removeAttribute("aria-current");
    if (expanded !== null) {
      li.setAttribute("aria-expanded", expanded);
      li.querySelector("ul").hidden = !expanded;
    }
    const words = [item.name, item.type, done ? "" : "not run yet",
      none ? (text === "not yet" ? "gradient not yet" : text) : `gradient ${text}`];
    li.setAttribute("aria-label", words.filter(Boolean).join(", "));
  }

  /* Modules of one op are shown by that op. */
  function selectedKey(selected) {
    if (!selected || items.has(selected) || !selected.startsWith("module:")) return selected;
    const module = modules.get(selected.slice("module:".length));
    return module && module.ops.length === 1 ? `op:${module.ops[0]}` : selected;
  }

  // ---- keys and pointer ------------------------------------------------------------------------

  const visible = () => [...tree.querySelectorAll('[role="treeitem"]')]
    .filter((li) => !li.parentElement.closest("ul[hidden]"));

  /* Makes an item the one that Tab comes to. */
  function reach(key, focus) {
    const old = items.get(reached);
    if (old) old.element.tabIndex = -1;
    reached = key;
    const { element: li } = items.get(key);
    li.tabIndex = 0;
    if (focus) li.focus({ preventScroll: true });
    li.firstChild.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function setOpen(path, wanted) {
    const open = new Set(store.state.open);
    if (wanted) open.add(path);
    else open.delete(path);
    store.set({ open });
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const item = items.get(event.target.dataset.key);
    if (!item) return;
    const shown = visible();
    const place = shown.indexOf(item.element);
    const isOpen = item.path !== undefined && store.state.open.has(item.path);
    const to = (li) => li && reach(li.dataset.key, true);
    const keys = {
      ArrowDown: () => to(shown[place + 1]),
      ArrowUp: () => to(shown[place - 1]),
      Home: () => to(shown[0]),
      End: () => to(shown.at(-1)),
      ArrowRight() {
        if (item.path === undefined) return;
        if (isOpen) to(shown[place + 1]);
        else setOpen(item.path, true);
      },
      ArrowLeft() {
        if (isOpen) setOpen(item.path, false);
        else to(item.element.parentElement.closest('[role="treeitem"]'));
      },
      Enter() {
        store.set({ selected: item.key });
        if (item.path !== undefined) setOpen(item.path, !isOpen);
      },
      " ": () => store.set({ selected: item.key }),
    };
    if (!Object.hasOwn(keys, event.key)) return;
    keys[event.key]();
    event.preventDefault();
    event.stopPropagation(); // here these keys do not step
  }

  function onClick(event) {
    const li = event.target.closest('[role="treeitem"]');
    if (!li) return;
    const item = items.get(li.dataset.key);
    reach(item.key, true);
    store.set({ selected: item.key });
    const closed = item.path !== undefined && !store.state.open.has(item.path);
    if (item.path !== undefined && (event.target === item.sign || closed)) setOpen(item.path, closed);
  }

  // ---- mounting --------------------------------------------------------------------------------

  function mount(host) {
    host.classList.add("outline");
    tree = h("ul", { role: "tree", "aria-label": "Modules and ops, with their gradients" });
    tree.append(...root.children.map((child) => itemOf(child, 0).element));
    host.replaceChildren(tree);
    refresh();
    const first = items.keys().next().value;
    if (first !== undefined) reach(first, false);
    tree.addEventListener("keydown", onKey);
    tree.addEventListener("click", onClick);
    store.subscribe((state, changed) => {
      if (!["step", "selected", "open"].some((key) => changed.has(key))) return;
      refresh();
      if (changed.has("selected")) reachVisible(state.selected);
      if (changed.has("step")) follow();
      if (changed.has("open")) keepReachable();
    });
  }

  function reachVisible(selected) {
    const key = selectedKey(selected);
    if (!items.has(key)) return;
    if (!items.get(key).element.parentElement.closest("ul[hidden]")) reach(key, false);
  }

  /* The item of the step comes into view, the focus stays where it is. */
  function follow() {
    const current = tree.querySelector("[aria-current]");
    if (current && !tree.contains(document.activeElement)) {
      current.firstChild.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  /* What a closed module hides cannot hold the focus: the module does. */
  function keepReachable() {
    const hidden = items.get(reached).element.parentElement.closest("ul[hidden]");
    if (!hidden) return;
    let outermost = hidden;
    for (let ul = hidden; ul; ul = ul.parentElement.closest("ul[hidden]")) outermost = ul;
    const focus = tree.contains(document.activeElement);
    reach(outermost.closest('[role="treeitem"]').dataset.key, focus);
  }

  Flow.outline = { mount };
})();
