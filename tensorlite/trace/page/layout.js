/* What the graph shows for a given set of open modules, and where.

   Frames are lanes: columns from left to right, and one more at the right for ops that belong to no
   frame. Ops that do the same in several lanes share a *place*; the layout of the places in a single
   lane (by dagre: layers from bottom to top) is repeated in every lane. Nothing here draws. */
(() => {
  "use strict";
  const Flow = window.Flow;
  const { tape } = Flow;
  const { tensors, ops } = tape;

  const MANY = 4; // uses of an input; with more, it stands beside the graph, not in it

  // Sizes in the graph's own units, which are pixels at zoom 1.
  const HEIGHT = { op: 46, module: 54, tensor: 44 };
  const CHIP = { width: 92, height: 26, gap: 6, room: 76 }; // a parameter beside its op
  const GAP = 46; // between layers, with room for a number on the edge
  const TITLE = 52; // above what an open module holds
  const PAD = 16; // and around it
  const SIDE = 13; // from the middle of a node's side to where edges of other layers join it
  const LANE_GAP = { plain: 48, crossed: 132, track: 14 };

  // ---- modules and ops, as a hierarchy ---------------------------------------------------------

  /* {path, name, type, parent, children: modules and ops in the program's order, ops: all inside,
     single: whether it is one op per lane without modules inside, which is drawn as that op}. */
  const root = { path: "", name: "", type: null, parent: null, children: [], ops: [] };
  const modules = new Map([["", root]]);

  function moduleAt(path) {
    if (!modules.has(path)) {
      const parent = moduleAt(Flow.parentOf(path));
      const name = path.slice(parent.path ? parent.path.length + 1 : 0);
      const module = { path, name, type: null, parent, children: [], ops: [], single: false };
      modules.set(path, module);
      parent.children.push(module);
    }
    return modules.get(path);
  }

  const moduleOf = ops.map((op, i) => {
    const module = moduleAt(op.module || "");
    module.type = module.type || op.module_type;
    module.children.push(i);
    for (let m = module; m; m = m.parent) m.ops.push(i);
    return module;
  });

  // ---- lanes and places ------------------------------------------------------------------------

  const consumers = tensors.map(() => []); // of each tensor [{op, slot}]
  ops.forEach((op, i) => op.inputs.forEach((t, slot) => {
    if (t !== null) consumers[t].push({ op: i, slot });
  }));

  /* The lanes of each op: its frames; of one without, the lane that it prepares something for, else
     null, the lane for what has to do with several frames. */
  const lanesOf = ops.map((op) => (tape.frames && op.frames ? op.frames : [null]));
  const timeless = tensors.map(() => true); // whether no frame has a part in a tensor
  tensors.forEach((tensor, t) => { timeless[t] = !tensor.frames; });
  ops.forEach((op) => {
    if (op.inputs.some((t) => t !== null && !timeless[t])) timeless[op.output] = false;
  });
  for (let i = ops.length - 1; tape.frames && i >= 0; i -= 1) {
    const users = consumers[ops[i].output].map(({ op }) => lanesOf[op][0]);
    if (timeless[ops[i].output] && users.length && !users.includes(null)) {
      lanesOf[i] = [Math.min(...users)];
    }
  }

  modules.forEach((module) => {
    const lanes = module.ops.flatMap((i) => lanesOf[i]);
    module.single = module !== root && module.children.length === module.ops.length
      && new Set(lanes).size === lanes.length;
  });

  /* The place of each op: the first of its kind in its module that is still free in its lanes. */
  const placeOf = [];
  const placesByKind = new Map();
  ops.forEach((op, i) => {
    const kind = `${op.module} ${op.op}`;
    if (!placesByKind.has(kind)) placesByKind.set(kind, []);
    const places = placesByKind.get(kind);
    const lanes = lanesOf[i];
    const last = places.findLastIndex((place) => lanes.some((lane) => place.lanes.has(lane)));
    let place = places[last + 1];
    if (!place) places.push(place = { key: `op ${i}`, lanes: new Set() });
    lanes.forEach((lane) => place.lanes.add(lane));
    placeOf[i] = place.key;
  });

  /* Whether a tensor is drawn beside the ops that use it: parameters, what is used all over a program,
     and where there are frames also whatever else is learned and of no frame. */
  const beside = tensors.map((tensor, t) => tensor.kind === "parameter" || (tensor.kind === "leaf"
    && ((tape.frames && !tensor.frames) || consumers[t].length > MANY)));

  /* Program inputs and constants: {tensor, key, lanes}. */
  function sourceOf(t) {
    const tensor = tensors[t];
    const first = consumers[t][0];
    if (tensor.op !== null || beside[t] || !first) return null;
    // One without frames stands in the first lane that it is used in.
    const lanes = tape.frames && tensor.frames ? tensor.frames : lanesOf[first.op].slice(0, 1);
    const alone = tape.frames && lanes.length === 1;
    const key = alone ? `input ${first.slot} of ${placeOf[first.op]}` : `tensor ${t}`;
    const scalar = tensor.kind === "constant" && tensor.shape.every((n) => n === 1);
    return { tensor: t, key, lanes, scalar };
  }
  const sources = tensors.map((_, t) => sourceOf(t));

  /* The lanes of a tensor: those of the op that made it, or where it stands as an input. */
  function lanesOfTensor(t) {
    if (tensors[t].op !== null) return lanesOf[tensors[t].op];
    return sources[t] ? sources[t].lanes : [null];
  }

  const lanes = [...Array(tape.frames || 0).keys()];
  if (!lanes.length || lanesOf.some((of) => of[0] === null)) lanes.push(null);

  // ---- wires: one input of one op in one lane -----------------------------------------------------

  const wires = []; // {op, slot, tensor, from, to: lanes, frame: of the gradient's part, kind}
  ops.forEach((op, i) => op.inputs.forEach((t, slot) => {
    if (t === null || beside[t]) return;
    const shift = op.shifts[slot] || 0;
    const kind = shift > 0 || op.roles[slot] === "temporal skip" ? "temporal"
      : { "spatial skip": "spatial", "residual branch": "residual" }[op.roles[slot]] || "plain";
    const from = lanesOfTensor(t);
    const to = lanesOf[i];
    const pairs = [];
    for (const lane of to) {
      if (lane === null || from[0] === null) from.forEach((f) => pairs.push([f, lane]));
      else if (from.includes(lane - shift)) pairs.push([lane - shift, lane]);
    }
    if (!pairs.length) pairs.push([from[from.length - 1], to[0]]);
    if (!tensors[t].frames && tensors[t].op === null) pairs.splice(1);
    for (const [f, lane] of pairs) {
      const frame = tensors[t].frames && from.length > 1 ? f : null;
      wires.push({ op: i, slot, tensor: t, from: f, to: lane, frame, kind });
    }
  }));

  // ---- what is visible ----------------------------------------------------------------------------

  /* The nodes, edges, boxes and parameters to be drawn with the modules of `open` opened. */
  function visible(open) {
    const shown = (module) => module === root || module.single || open.has(module.path);
    /* The outermost closed module around an op, or null where the op itself is to be seen. */
    const closed = moduleOf.map((module) => {
      let found = null;
      for (let m = module; m; m = m.parent) if (!shown(m)) found = m;
      return found;
    });
    const innermost = (i) => (moduleOf[i].single ? moduleOf[i].parent : moduleOf[i]);

    const nodes = new Map();
    const places = new Map();
    function node(id, lane, place, fill) {
      if (!nodes.has(id)) {
        const made = { id, lane, place, ops: [], ...fill };
        nodes.set(id, made);
        if (!places.has(place)) places.set(place, { key: place, parent: made.parent, nodes: [] });
        places.get(place).nodes.push(made);
      }
      return nodes.get(id);
    }
    const name = (lane) => (lane === null ? "all" : lane);

    function nodeOfOp(i, lane) {
      const module = closed[i];
      if (module) {
        return node(`module:${module.path}@${name(lane)}`, lane, `module ${module.path}`,
          { kind: "module", module, parent: module.parent });
      }
      return node(`op:${i}@${name(lane)}`, lane, placeOf[i],
        { kind: "op", op: i, module: moduleOf[i], parent: innermost(i) });
    }
    const opNodes = ops.map((op, i) => lanesOf[i].map((lane) => {
      const made = nodeOfOp(i, lane);
      made.ops.push(i);
      return made;
    }));

    sources.forEach((source) => {
      if (!source) return;
      const users = consumers[source.tensor].map(({ op }) => op);
      if (source.scalar && users.every((i) => closed[i])) return;
      const parent = users.map((i) => (closed[i] ? closed[i].parent : innermost(i))).reduce(common);
      // What a program begins with stands outside all modules; a constant within its own.
      const outside = source.scalar ? parent : root;
      source.lanes.forEach((lane) => node(`tensor:${source.tensor}@${name(lane)}`, lane, source.key,
        { kind: "tensor", tensor: source.tensor, parent: outside }));
    });

    const edges = new Map();
    for (const wire of wires) {
      const made = tensors[wire.tensor].op;
      const from = made === null ? nodes.get(`tensor:${wire.tensor}@${name(wire.from)}`)
        : nodeOfOp(made, wire.from);
      const to = nodeOfOp(wire.op, wire.to);
      if (!from || from === to) continue;
      const id = `${from.id} ${to.id} ${wire.kind}`;
      if (!edges.has(id)) edges.set(id, { id, from, to, kind: wire.kind, wires: [] });
      edges.get(id).wires.push(wire);
    }

    // Parameters of ops in open modules, once each, at the first op and lane that they are used in.
    const parameters = [];
    tensors.forEach((tensor, t) => {
      if (!beside[t]) return;
      const users = consumers[t].filter(({ op }) => !closed[op] && (innermost(op) !== root
        || tensor.kind === "leaf" || open.has(moduleOf[op].path)));
      if (!users.length) return;
      const id = `tensor:${t}@parameters`;
      parameters.push({ id, kind: "parameter", tensor: t, ops: [],
        lane: lanesOf[users[0].op][0], users: users.map(({ op }) => opNodes[op][0]) });
      for (const { op, slot } of users) {
        const wire = { op, slot, tensor: t, from: null, to: lanesOf[op][0], frame: null };
        edges.set(`${id} ${op} ${slot}`, { id: `${id} ${op} ${slot}`, from: parameters.at(-1),
          to: opNodes[op][0], kind: "parameter", wires: [wire] });
      }
    });

    const boxes = [...modules.values()].filter((module) => {
      for (let m = module; m !== root; m = m.parent) if (m.single || !open.has(m.path)) return false;
      return module !== root;
    });
    return { nodes: [...nodes.values()], places: [...places.values()], edges: [...edges.values()],
      parameters, boxes };
  }

  /* The innermost module that holds both. */
  function common(a, b) {
    const above = new Set();
    for (let m = a; m; m = m.parent) above.add(m);
    for (let m = b; ; m = m.parent) if (above.has(m)) return m;
  }

  // ---- one lane -----------------------------------------------------------------------------------

  /* The places of one lane laid out: sets x, y, width, height of each; returns {extent: of each open
     module [left, right], points: for each edge between places its bends, row(y)}. */
  function layOut(graph, measure, titleWidth) {
    const g = new window.dagre.graphlib.Graph({ multigraph: true, compound: true });
    g.setGraph({ rankdir: "BT", nodesep: 34, edgesep: 18, ranksep: GAP, ranker: "network-simplex" });
    g.setDefaultEdgeLabel(() => ({}));
    graph.boxes.forEach((module) => g.setNode(`box ${module.path}`, {}));
    graph.boxes.forEach((module) => {
      if (module.parent !== root) g.setParent(`box ${module.path}`, `box ${module.parent.path}`);
    });
    const titled = new Set();
    for (const place of graph.places) {
      // The first place within a box makes room for its title.
      let room = 0;
      for (let m = place.parent; m !== root; m = m.parent) {
        if (!titled.has(m)) room = Math.max(room, titleWidth(m));
        titled.add(m);
      }
      place.width = Math.max(...place.nodes.map(measure));
      place.height = HEIGHT[place.nodes[0].kind];
      g.setNode(place.key, { width: Math.max(place.width, room), height: place.height });
      if (place.parent !== root) g.setParent(place.key, `box ${place.parent.path}`);
    }
    const within = graph.edges.filter((e) => e.kind !== "parameter" && e.kind !== "temporal"
      && (e.from.lane === e.to.lane || e.from.lane === null || e.to.lane === null));
    for (const edge of within) {
      const width = edge.kind === "plain" ? 58 : 100; // of the words and the number on it
      const weight = edge.kind === "spatial" ? 1 : 4; // a skip makes the detour
      const label = { width, height: 18, labelpos: "c", weight };
      g.setEdge(edge.from.place, edge.to.place, label, edge.kind);
    }
    // A temporal skip has no part in a lane; but what it comes from is drawn below what it goes to.
    for (const edge of graph.edges.filter((e) => e.kind === "temporal")) {
      const { from: { place: a }, to: { place: b } } = edge;
      if (a !== b && !reaches(g, a, b) && !reaches(g, b, a)) g.setEdge(a, b, { weight: 0 }, "order");
    }
    window.dagre.layout(g);
    graph.places.forEach((place) => Object.assign(place, pick(g.node(place.key))));
    const extent = new Map(graph.boxes.map((module) => {
      const { x, width } = g.node(`box ${module.path}`);
      return [module, [x - width / 2, x + width / 2]];
    }));
    const points = new Map(g.edges().map((e) => [`${e.v} ${e.w} ${e.name}`, g.edge(e).points]));
    return { extent, points };
  }

  const pick = ({ x, y }) => ({ x, y });

  function reaches(g, from, to) {
    const seen = new Set();
    const frontier = [from];
    while (frontier.length) {
      const v = frontier.pop();
      if (v === to) return true;
      if (!seen.has(v)) {
        seen.add(v);
        frontier.push(...g.successors(v));
      }
    }
    return false;
  }

  /* Moves the layers apart so that the titles and borders of open modules have room: returns
     `height`, from dagre's heights to the final ones, and `extent`, of a module's box in a lane
     [top, bottom]. */
  function spread(graph) {
    const rows = [...new Set(graph.places.map((place) => place.y))].sort((a, b) => b - a); // upwards
    const rowOf = (place) => rows.indexOf(place.y);
    const span = new Map(graph.boxes.map((module) => [module, [Infinity, -Infinity]]));
    for (const place of graph.places) {
      for (let m = place.parent; m !== root; m = m.parent) {
        const [low, high] = span.get(m);
        span.set(m, [Math.min(low, rowOf(place)), Math.max(high, rowOf(place))]);
      }
    }
    // How many borders of a box and those inside it end at the same row, at the bottom and the top.
    const depth = new Map();
    const levels = (module, side) => 1 + Math.max(0, ...graph.boxes.filter((inner) =>
      inner.parent === module && span.get(inner)[side] === span.get(module)[side])
      .map((inner) => levels(inner, side)));
    graph.boxes.forEach((module) => depth.set(module, [levels(module, 0), levels(module, 1)]));
    const most = (row, side) => Math.max(0, ...graph.boxes
      .filter((module) => span.get(module)[side] === row).map((module) => depth.get(module)[side]));

    const half = rows.map((y) => Math.max(...graph.places.filter((place) => place.y === y)
      .map((place) => place.height)) / 2);
    const heights = [0];
    for (let row = 1; row < rows.length; row += 1) {
      const borders = most(row - 1, 1) * TITLE + most(row, 0) * PAD;
      heights[row] = heights[row - 1] - half[row - 1] - half[row] - GAP - borders;
    }
    function height(y) {
      let row = rows.findIndex((r) => r <= y);
      if (row === 0) return heights[0] + (y - rows[0]);
      if (row < 0) return heights.at(-1) + (y - rows.at(-1));
      const part = (rows[row - 1] - y) / (rows[row - 1] - rows[row]);
      return heights[row - 1] + part * (heights[row] - heights[row - 1]);
    }
    const levelY = new Map(graph.places.map((place) => [place, rowOf(place)]));
    function extent(module, lane) {
      const held = graph.places.filter((place) => place.nodes.some((node) => node.lane === lane));
      const inner = graph.boxes.filter((m) => m.parent === module && hasLane(m, lane))
        .map((m) => extent(m, lane));
      const own = held.filter((place) => place.parent === module).map((place) => levelY.get(place));
      const tops = [...own.map((row) => heights[row] - half[row]), ...inner.map(([top]) => top)];
      const ends = [...own.map((row) => heights[row] + half[row]), ...inner.map(([, end]) => end)];
      return [Math.min(...tops) - TITLE, Math.max(...ends) + PAD];
    }
    return { height, extent };
  }

  // ---- all lanes ----------------------------------------------------------------------------------

  /* Everything placed: {nodes, edges, parameters, boxes, lanes}. Nodes have x, y, width, height;
     edges `bends`, points between their ends, and `side` where they leave sideways; boxes one entry
     per lane {module, lane, left, right, top, bottom}; lanes {lane, left, right}. `measure(node)` and
     `titleWidth(module)` are the widths that their texts need. */
  function layout(open, measure, titleWidth) {
    const graph = visible(open);
    const { extent: across, points } = layOut(graph, measure, titleWidth);
    const { height, extent: tall } = spread(graph);
    graph.places.forEach((place) => { place.y = height(place.y); });

    // Lanes side by side, each as wide as what it holds.
    const crossing = graph.edges.filter((e) => e.kind !== "parameter" && e.from.lane !== e.to.lane
      && e.from.lane !== null && e.to.lane !== null);
    const tracks = trackOf(crossing, graph.places);
    const shiftOf = new Map();
    const columns = [];
    let right = 0;
    for (const lane of lanes) {
      const here = graph.places.filter((place) => place.nodes.some((n) => n.lane === lane));
      if (!here.length) continue;
      const boxes = graph.boxes.filter((module) => hasLane(module, lane));
      const bends = graph.edges.filter((e) => e.from.lane === lane && e.to.lane === lane)
        .flatMap((e) => points.get(`${e.from.place} ${e.to.place} ${e.kind}`) || []);
      const left = Math.min(...here.map((p) => p.x - p.width / 2), ...bends.map((p) => p.x - 30),
        ...boxes.map((m) => across.get(m)[0]));
      const edge = Math.max(...here.map((p) => p.x + p.width / 2), ...bends.map((p) => p.x + 30),
        ...boxes.map((m) => across.get(m)[1]));
      const chips = graph.parameters.some((p) => p.lane === lane) ? CHIP.width + CHIP.room : 0;
      const crossed = crossing.filter((e) => e.to.lane === lane);
      const most = Math.max(0, ...crossed.map((e) => tracks.get(e)));
      const gap = crossed.length ? LANE_GAP.crossed + most * LANE_GAP.track : LANE_GAP.plain;
      const start = columns.length ? right + gap : 0;
      shiftOf.set(lane, start + chips - left);
      right = start + chips + edge - left;
      columns.push({ lane, left: start, right, gap, chips });
    }
    for (const place of graph.places) {
      for (const node of place.nodes) {
        node.x = place.x + shiftOf.get(node.lane);
        node.y = place.y;
        node.width = place.width;
        node.height = place.height;
      }
    }
    const boxes = graph.boxes.flatMap((module) => columns
      .filter(({ lane }) => hasLane(module, lane)).map(({ lane }) => {
        const [left, right] = across.get(module).map((x) => x + shiftOf.get(lane));
        const [top, bottom] = tall(module, lane);
        return { module, lane, id: `module:${module.path}@${lane === null ? "all" : lane}`,
          left, right, top, bottom, ops: module.ops.filter((i) => lanesOf[i].includes(lane)) };
      }));

    for (const edge of graph.edges) {
      const { from, to } = edge;
      edge.bends = [];
      if (edge.kind === "parameter") continue;
      if (from.lane === to.lane) {
        const bends = points.get(`${from.place} ${to.place} ${edge.kind}`) || [];
        edge.bends = upright(from, to, bends.slice(1, -1)
          .map((p) => ({ x: p.x + shiftOf.get(from.lane), y: height(p.y) })));
      } else if (from.lane === null || to.lane === null) {
        const between = to.y + to.height / 2 + GAP / 2;
        if (from.y > between) {
          edge.bends = upright(from, to, [{ x: from.x, y: between }, { x: to.x, y: between }]);
        }
      } else {
        edge.side = to.x > from.x ? 1 : -1;
        const { left, gap } = columns.find((c) => c.lane === (edge.side > 0 ? to : from).lane);
        const x = left - gap / 2 - tracks.get(edge) * LANE_GAP.track / 2;
        // Beside the middle of the nodes, where an edge between the same layers runs.
        const up = from.y > to.y ? SIDE : -SIDE;
        if (from.y !== to.y) edge.bends = [{ x, y: from.y - up }, { x, y: to.y + up }];
      }
    }
    columns.forEach((column) => placeParameters(graph, column));
    const bottom = Math.max(...graph.nodes.map((n) => n.y + n.height / 2));
    const top = Math.min(...graph.nodes.map((n) => n.y - n.height / 2), ...boxes.map((b) => b.top));
    return { ...graph, boxes, columns, top, bottom };
  }

  /* The bends of an edge with one more at each end, so that it leaves and enters upright, below or
     above the bend that comes next as far as the node is wide. */
  function upright(from, to, bends) {
    if (bends.every((p) => Math.abs(p.x - from.x) + Math.abs(p.x - to.x) < 2)) return [];
    const up = from.y > to.y ? 1 : -1;
    const port = (node, bend, side) => {
      const half = node.width / 2;
      const part = Math.max(-1, Math.min(1, (bend.x - node.x) / half));
      return { x: node.x + part * (half - 14), y: node.y + side * (node.height / 2 + 11) };
    };
    return [port(from, bends[0], -up), ...bends, port(to, bends.at(-1), up)];
  }

  function hasLane(module, lane) {
    return module.ops.some((i) => lanesOf[i].includes(lane));
  }

  /* Edges that cross between the same lanes run up side by side where their heights overlap. */
  function trackOf(crossing, places) {
    const yOf = new Map(places.map((place) => [place.key, place.y]));
    const taken = [];
    const tracks = new Map();
    for (const edge of crossing) {
      const ys = [yOf.get(edge.from.place), yOf.get(edge.to.place)].sort((a, b) => a - b);
      let track = 0;
      while (ys[0] !== ys[1] && taken.some((t) => t.track === track && t.lane === edge.to.lane
        && t.ys[0] < ys[1] && ys[0] < t.ys[1])) track += 1;
      taken.push({ track, lane: edge.to.lane, ys });
      tracks.set(edge, track);
    }
    return tracks;
  }

  /* Parameters at the left of the lane that they are used in first, each just below its op. */
  function placeParameters(graph, { lane, left, chips }) {
    const wanted = graph.parameters.filter((p) => p.lane === lane)
      .map((p) => ({ p, y: p.users[0].y + p.users[0].height / 2 + 12 }));
    wanted.sort((a, b) => b.y - a.y);
    let last = Infinity;
    for (const { p, y } of wanted) {
      p.width = CHIP.width;
      p.height = CHIP.height;
      p.x = left + CHIP.width / 2;
      p.y = Math.min(y, last - CHIP.height - CHIP.gap);
      last = p.y;
    }
    for (const edge of graph.edges.filter((e) => e.kind === "parameter"
      && e.from.lane === lane)) {
      const { from, to } = edge;
      const below = to.y + to.height / 2 + 12;
      const x = to.x - to.width / 2 + 14;
      const turn = left + chips - 16;
      edge.bends = [{ x: turn, y: from.y }, { x: turn, y: below }, { x, y: below }];
    }
  }

  /* The results that leave the part of a module in a lane, for other modules or another lane, and
     those that nothing uses. */
  function outputsOf(module, lane) {
    const inside = new Set(module.ops);
    const leaving = new Set(wires.filter((wire) => inside.has(tensors[wire.tensor].op)
      && wire.from === lane && (wire.to !== lane || !inside.has(wire.op))).map((wire) => wire.tensor));
    return module.ops.filter((i) => lanesOf[i].includes(lane)).map((i) => ops[i].output)
      .filter((t) => tensors[t].requires_grad && (leaving.has(t) || !consumers[t].length));
  }

  Flow.layout = { root, modules, moduleOf, consumers, outputsOf, TITLE, GAP, layout };
})();
