// The masks of GroupMask, drawn as gmml_aug/sampling/sequential.py defines them, and the page that shows them.
"use strict";

const LOW_64 = (1n << 64n) - 1n, GAMMA = 0x9E3779B97F4A7C15n;
const COUNT_SLOT = 0n, CUT_SLOT = 2n, RECTANGLE_SLOT = 4n, PATCH_SLOT = 1n << 32n; // the map of gmml_aug/rng.py

/** Returns the word of a slot: 64 bits. */
function word(key, slot) {
  let z = (key + slot * GAMMA) & LOW_64;
  z = ((z ^ (z >> 30n)) * 0xBF58476D1CE4E5B9n) & LOW_64;
  z = ((z ^ (z >> 27n)) * 0x94D049BB133111EBn) & LOW_64;
  return z ^ (z >> 31n);
}

/** Returns the two halves of a word, of 32 bits each. */
function halves(key, slot) {
  const z = word(key, slot);
  return [z >> 32n, z & 0xFFFFFFFFn];
}

/** Rounds half to even, as Python does. */
function round(x) {
  const floor = Math.floor(x), rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Returns the probability that one group covers each place of an axis. */
function coverage(side, [low, high], inside) {
  const covered = new Array(side).fill(0);
  for (let size = low; size <= high; size++) {
    const starts = inside ? side - size + 1 : side + size - 1;
    for (let place = 0; place < side; place++) {
      const covering = inside ? Math.min(size, starts, place + 1, side - place) : size;
      covered[place] += covering / starts / (high - low + 1);
    }
  }
  return covered;
}

/** Returns how many rectangles to draw at most; gmml_aug/shapes.py says why so many. */
function rectanglesNeeded(rows, columns, most, heights, widths, inside) {
  const patches = rows * columns;
  if (most === 0 || (heights[1] === 1 && widths[1] === 1)) return 0;
  most = Math.min(most, patches - 1);
  const down = coverage(rows, heights, inside), across = coverage(columns, widths, inside);
  const share = (patches - most + 1) / patches, wanted = Math.log(1e9);
  const cells = Math.max(1, patches / (((heights[0] + heights[1]) * (widths[0] + widths[1])) / 4));
  const enough = (rectangles) => {
    let visible = 0;
    for (const a of down) for (const b of across) visible += (1 - a * b) ** rectangles / patches;
    if (visible >= share) return false;
    if (visible === 0 || Math.log(share / visible) >= wanted) return true;
    let divergence = share * Math.log(share / visible);
    if (share < 1) divergence += (1 - share) * Math.log((1 - share) / (1 - visible));
    return cells * divergence >= wanted;
  };
  let low = 0, high = 1;
  while (!enough(high)) [low, high] = [high, 2 * high];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (enough(middle)) high = middle; else low = middle;
  }
  return Math.ceil(high / 63) * 63;
}

/** Returns the first row of a group and the one after its last, or its columns, clipped to the grid. */
function span(key, slot, [low, high], side, inside) {
  const [forSize, forPlace] = halves(key, slot);
  const size = low + Number(((forSize ^ 0x80000000n) * BigInt(high - low + 1)) >> 32n);
  const first = inside
    ? Number((forPlace * BigInt(side + 1 - size)) >> 32n)
    : Number((forPlace * BigInt(side - 1 + size)) >> 32n) + 1 - size;
  return [Math.max(first, 0), Math.min(first + size, side)];
}

/** Returns how many patches an image hides. */
function count(key, patches, [low, high]) {
  const start = round(low * patches * 65536), stop = round(high * patches * 65536);
  const drawn = (halves(key, COUNT_SLOT)[0] >> 8n) * BigInt(stop - start);
  const exact = BigInt(start) + (drawn >> 24n);
  let number = Number((exact + 0x8000n) >> 16n);
  if ((exact & 0xFFFFn) === 0x8000n) number -= number & 1;
  return Math.min(Math.max(number, round(low * patches)), round(high * patches));
}

/**
 * Returns the number of the group that hides each patch of a sample, row by row; -1 = visible.
 *
 * options: rows, columns, ratio [low, high], groupSize [low, high] or null, placement "uniform" or "inside", invert.
 */
function draw(seed, index, { rows, columns, ratio, groupSize, placement, invert }) {
  const patches = rows * columns, inside = placement === "inside", group = new Array(patches).fill(-1);
  const key = word(word(BigInt(seed) & LOW_64, 1n), BigInt(index));
  const heights = groupSize ?? [1, Math.max(1, Math.floor((rows * 3) / 10))];
  const widths = groupSize ?? [1, Math.max(1, Math.floor((columns * 3) / 10))];
  const counts = ratio.map((share) => round(share * patches));
  const [fewest, largest] = invert ? [patches - counts[1], patches - counts[0]] : counts;
  const rectangles = fewest < patches ? rectanglesNeeded(rows, columns, largest, heights, widths, inside) : 0;
  const hidden = count(key, patches, ratio);
  let left = invert && hidden > 0 ? patches - hidden : hidden; // inverted, the groups are what stays visible
  for (let k = 0; left > 0 && k < rectangles; k++) {
    const slot = RECTANGLE_SLOT + 2n * BigInt(k);
    const [top, bottom] = span(key, slot, heights, rows, inside);
    const [first, last] = span(key, slot + 1n, widths, columns, inside);
    for (let row = top; row < bottom; row++) {
      for (let place = row * columns + first; place < row * columns + last; place++) {
        if (group[place] < 0) { group[place] = k; left -= 1; }
      }
    }
    if (left < 0) { // the last group is cut, at its beginning or at its end
      const step = word(key, CUT_SLOT) >> 63n ? 1 : -1;
      for (let place = step > 0 ? top * columns : bottom * columns - 1; left < 0; place += step) {
        if (group[place] === k) { group[place] = -1; left += 1; }
      }
    }
  }
  if (left > 0) { // no group covers the rest, so patches are hidden by themselves, at random
    const order = [];
    for (let place = 0; place < patches; place++) {
      const rank = Number(halves(key, PATCH_SLOT + BigInt(place))[1] & 0xFFFFFn);
      if (group[place] < 0) order.push([rank, place]);
    }
    order.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    for (const [, place] of order.slice(0, left)) group[place] = rectangles + place;
  }
  return invert && hidden > 0 ? group.map((number) => (number < 0 ? 0 : -1)) : group;
}

// The page.

const CONTROLS = [ // name, label, least, most, step, at first
  ["grid", "grid, in patches a side", 4, 32, 1, 14],
  ["low", "ratio, lowest", 0, 1, 0.05, 0.4],
  ["high", "ratio, highest", 0, 1, 0.05, 0.7],
  ["smallest", "smallest side of a group", 1, 32, 1, 1],
  ["largest", "largest side of a group", 1, 32, 1, 4],
  ["seed", "seed", 0, 99, 1, 0],
  ["index", "index of the sample", 0, 99, 1, 0],
];

/** Builds the sliders, and draws at once and at every change. */
function start(root) {
  const form = root.querySelector("form"), canvas = root.querySelector("canvas"), photo = new Image();
  const code = document.querySelector("#figures ~ .highlight code, #figures ~ div code");
  const row = (label, input) => {
    const line = document.createElement("label"), output = document.createElement("output");
    line.append(label, " ", output, input);
    form.append(line);
    return output;
  };
  const inputs = {}, outputs = {};
  for (const [name, label, min, max, step, value] of CONTROLS) {
    inputs[name] = Object.assign(document.createElement("input"), { type: "range", name, min, max, step, value });
    outputs[name] = row(label, inputs[name]);
  }
  for (const [name, label] of [["inside", "placement: inside the grid"], ["invert", "invert: the groups stay visible"]]) {
    inputs[name] = Object.assign(document.createElement("input"), { type: "checkbox", name });
    row(label, inputs[name]);
  }

  const show = () => {
    const value = (name) => Number(inputs[name].value), grid = value("grid");
    for (const name of ["smallest", "largest"]) inputs[name].max = grid;
    if (value("low") > value("high")) inputs.high.value = inputs.low.value;
    if (value("smallest") > value("largest")) inputs.largest.value = inputs.smallest.value;
    for (const name of Object.keys(outputs)) outputs[name].value = inputs[name].value;
    const placement = inputs.inside.checked ? "inside" : "uniform";
    const options = {
      rows: grid, columns: grid, ratio: [value("low"), value("high")],
      groupSize: [value("smallest"), value("largest")], placement, invert: inputs.invert.checked,
    };
    const group = draw(value("seed"), value("index"), options);
    root.dataset.mask = group.map((number) => (number < 0 ? 0 : 1)).join("");
    paint(canvas, photo, group, grid);
    const hidden = group.filter((number) => number >= 0), share = ((100 * hidden.length) / group.length).toFixed(1);
    document.getElementById("figures").textContent =
      `${hidden.length} of ${group.length} patches are hidden (${share} %).`;
    code.textContent = `import torch
from gmml_aug import GroupMask

corrupt = GroupMask(
    patch_size=16, ratio=(${value("low")}, ${value("high")}), group_size=(${value("smallest")}, ${value("largest")}),
    placement="${placement}", invert=${inputs.invert.checked ? "True" : "False"}, seed=${value("seed")},
)
plan = corrupt.sample((1, 3, ${16 * grid}, ${16 * grid}), index=torch.tensor([${value("index")}]))
print(plan.mask.int())
`;
  };
  form.addEventListener("input", show);
  photo.addEventListener("load", show);
  photo.src = "../gallery/photograph.jpg";
  show();
}

/** Paints the photograph, and a colour for each group over what is hidden. */
function paint(canvas, photo, group, grid) {
  const context = canvas.getContext("2d"), side = canvas.width;
  context.drawImage(photo, 0, 0, side, side);
  group.forEach((number, place) => {
    if (number < 0) return;
    const edge = (i) => Math.round((i * side) / grid), x = place % grid, y = Math.floor(place / grid);
    context.fillStyle = `hsl(${(number * 137) % 360} 25% 45%)`;
    context.fillRect(edge(x), edge(y), edge(x + 1) - edge(x), edge(y + 1) - edge(y));
  });
}

if (typeof module === "object") module.exports = { draw };
else start(document.getElementById("board"));
