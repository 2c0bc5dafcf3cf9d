"use strict";
(() => {
  // Everything from the corpus goes in by textContent, so it is text whatever it holds.
  const data = JSON.parse(document.getElementById("data").textContent);
  const map = document.getElementById("plane");
  if (!map || !data.points) { return; }
  const dots = [...document.querySelectorAll("#dots path")];
  const ring = document.getElementById("ring");
  const core = document.getElementById("core");
  const read = document.getElementById("map-read");
  const by = document.getElementById("map-by");
  const legend = document.getElementById("map-legend");
  const idle = read.textContent;
  let painted = data.colourings[0];
  let only = null;
  let current = -1;
  if (dots.length > 600) { document.getElementById("dots").classList.add("many"); }

  const element = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  };

  const show = (index) => {
    current = index;
    if (index < 0) {
      ring.setAttribute("d", "M-99 -99h0");
      core.setAttribute("d", "M-99 -99h0");
      read.replaceChildren(idle);
      return;
    }
    const [x, y] = data.points[index];
    ring.setAttribute("d", `M${x} ${y}h0`);
    core.setAttribute("d", `M${x} ${y}h0`);
    core.setAttribute("class", `on ${painted.classes[index]}`);
    const shown = [element("strong", data.id[index])];
    if (data.text) { shown.push(element("q", data.text[index])); }
    const facts = data.colourings
      .filter((one) => one.shown[index] !== "")
      .map((one) => `${one.name} ${one.shown[index]}`);
    shown.push(element("span", facts.join(" · ")));
    read.replaceChildren(...shown);
  };

  const dim = () => dots.forEach((dot, index) => {
    const off = only !== null && painted.colours[index] !== only;
    dot.setAttribute("class", painted.classes[index] + (off ? " dim" : ""));
  });

  const paint = (number) => {
    painted = data.colourings[number];
    only = null;
    legend.replaceChildren(...painted.legend.map((entry) => {
      const button = element("button", "");
      const count = element("b", entry.n.toLocaleString("en"));
      const mark = document.createElement("i");
      mark.className = entry.class;
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.dataset.colour = entry.colour;
      button.append(mark, entry.label, " ", count);
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    dim();
    show(current);
  };

  const place = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    return point.matrixTransform(map.getScreenCTM().inverse());
  };

  const near = (event) => {
    const { x, y } = place(event);
    const reach = 26 / map.getScreenCTM().a;
    let best = -1;
    let least = reach * reach;
    data.points.forEach(([px, py], index) => {
      if (only !== null && painted.colours[index] !== only) { return; }
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) { [best, least] = [index, distance]; }
    });
    return best;
  };

  // The closest row in the direction of an arrow: within 45 degrees of it, near before far.
  const step = (dx, dy) => {
    const [x, y] = data.points[Math.max(current, 0)];
    let best = current;
    let least = Infinity;
    data.points.forEach(([px, py], index) => {
      const ahead = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (index === current || ahead <= 0 || aside > ahead) { return; }
      const distance = ahead + 2 * aside;
      if (distance < least) { [best, least] = [index, distance]; }
    });
    return best;
  };

  const keys = {
    ArrowLeft: () => step(-1, 0),
    ArrowRight: () => step(1, 0),
    ArrowUp: () => step(0, -1),
    ArrowDown: () => step(0, 1),
    Home: () => 0,
    End: () => dots.length - 1,
    Escape: () => -1,
  };

  map.addEventListener("pointermove", (event) => {
    const found = near(event);
    if (found >= 0 && found !== current) { show(found); }
  });
  map.addEventListener("pointerdown", (event) => {
    const found = near(event);
    show(found);
    if (found >= 0) {
      history.replaceState(null, "", `#row=${encodeURIComponent(data.id[found])}`);
    }
  });
  map.addEventListener("focus", () => { if (current < 0) { show(0); } });
  map.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) { return; }
    event.preventDefault();
    show(current < 0 ? 0 : keys[event.key]());
  });
  by.addEventListener("change", () => paint(Number(by.value)));
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) { return; }
    const colour = Number(button.dataset.colour);
    only = only === colour ? null : colour;
    legend.querySelectorAll("button").forEach((one) => {
      one.setAttribute("aria-pressed", String(only === Number(one.dataset.colour)));
    });
    dim();
  });

  // A link to a row: report.html#row=ID
  const follow = () => {
    const wanted = /^#row=(.*)$/.exec(location.hash);
    if (wanted) { show(data.id.indexOf(decodeURIComponent(wanted[1]))); }
  };
  window.addEventListener("hashchange", follow);
  by.value = "0";
  follow();
  document.documentElement.dataset.ready = "true";
})();
