// Small plots, in SVG. What they show is also said in words.

import { s } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 48;

/** Bars, the last of which is now. */
export function bars(values, label) {
  const most = Math.max(1, ...values);
  const width = WIDTH / Math.max(1, values.length);
  return s("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    values.map((value, index) => {
      const height = value ? Math.max(1.5, (value / most) * HEIGHT) : 0;
      return s("rect", { x: index * width + 0.5, y: HEIGHT - height, width: Math.max(0.5, width - 1), height });
    }));
}

/** A line through values in time, the last of which is now. */
export function line(values, label) {
  const most = Math.max(1, ...values);
  const step = WIDTH / Math.max(1, values.length - 1);
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(HEIGHT - 1 - (value / most) * (HEIGHT - 3)).toFixed(1)}`);
  return s("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    s("polyline", { points: (points.length === 1 ? [points[0], `${WIDTH},${points[0].split(",")[1]}`] : points).join(" ") }));
}
