// Where the pointers of a workflow are in its graph. Each costs the same, however many there are.

// A graph that has moved so far to the right goes on at the left.
const FAR = 3;

/**
 * Gives each pointer a place: `level` (below its predecessor, and below all that its predecessor encloses)
 * and `column`. Returns nodes in their order, with the indexes of those that they lead to and come from.
 */
export function layout(pointers) {
  const index = new Map(pointers.map((pointer, at) => [pointer.id, at]));
  const nodes = pointers.map((pointer, at) => ({ at, pointer, from: [], to: [], level: -1, column: 0 }));
  const connect = (a, b, kind) => {
    if (a === undefined || a === b) return;
    nodes[a].to.push({ node: b, kind });
    nodes[b].from.push({ node: a, kind });
  };
  const within = (pointer, outer) => pointer.scope !== undefined && pointer.scope.includes(outer.id);
  for (const node of nodes) {
    const before = index.get(node.pointer.predecessor);
    if (before !== undefined) connect(before, node.at, within(node.pointer, nodes[before].pointer) ? "child" : "next");
  }
  for (const node of nodes) {
    for (const child of node.pointer.children ?? []) {
      const at = index.get(child);
      if (at !== undefined && !nodes[at].from.length) connect(node.at, at, "child");
    }
  }

  const taken = []; // by level: the first column that is free
  const deepest = new Map(); // by the id of a pointer: the last level of what it encloses
  const place = (node, level, wish) => {
    node.level = level;
    const free = taken[level];
    node.column = free === undefined && wish > FAR ? 0 : Math.max(wish, free ?? 0);
    taken[level] = node.column + 1;
    for (const outer of node.pointer.scope ?? []) {
      deepest.set(outer, Math.max(level, deepest.get(outer) ?? 0));
    }
  };
  const follow = (node, before, kind) => {
    const level = kind === "child" ? before.level : Math.max(before.level, deepest.get(before.pointer.id) ?? 0);
    place(node, level + 1, before.column);
  };
  const settle = (open) => {
    while (open.length) {
      const node = open.pop();
      for (const edge of node.to) {
        const next = nodes[edge.node];
        if (next.level < 0) { follow(next, node, edge.kind); open.push(next); }
      }
    }
  };
  // An engine stores a pointer after the one that it follows. What is stored in another order, or is a ring,
  // as only a broken one stores it, comes afterwards; without recursion, as a chain may be long.
  for (const node of nodes) {
    const [edge] = node.from;
    if (edge === undefined) place(node, 0, 0);
    else if (nodes[edge.node].level >= 0) follow(node, nodes[edge.node], edge.kind);
  }
  settle(nodes.filter((node) => node.level >= 0 && node.to.some((edge) => nodes[edge.node].level < 0)));
  for (const node of nodes) {
    if (node.level < 0) { place(node, 0, 0); settle([node]); }
  }

  const levels = [];
  for (const node of nodes) (levels[node.level] ??= []).push(node);
  for (let level = 0; level < levels.length; level += 1) (levels[level] ??= []).sort((a, b) => a.column - b.column);
  return { nodes, levels, width: taken.reduce((most, n) => Math.max(most, n ?? 0), 0) };
}
