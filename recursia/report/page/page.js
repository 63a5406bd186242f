"use strict";
// Draws the plots, and lets the reader choose axes, units and runs.
(async () => {
  const items = JSON.parse(document.getElementById("plots").textContent);
  const drawn = [];
  for (const target of document.querySelectorAll("[data-plot]")) {
    const [view] = await Bokeh.embed.embed_item(items[target.dataset.plot], target);
    const plot = view.model;
    drawn.push({view, plot, x: target.dataset.x, y: target.dataset.y});
    // With a mouse, dragging zooms; a finger scrolls the page unless a tool is chosen.
    if (matchMedia("(pointer: fine)").matches) {
      const zoom = plot.toolbar.tools.find((tool) => tool.type === "BoxZoomTool");
      if (zoom) zoom.active = true;
    }
  }
  const chosen = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)]
    .map((input) => input.value);
  const all = (name) => [...document.querySelectorAll(`input[name=${name}]`)]
    .map((input) => input.value);

  function choose() {
    const [x] = chosen("x"), [y] = chosen("y"), tags = chosen("tag"), runs = chosen("run");
    for (const {view, plot, x: hasX, y: hasY} of drawn) {
      if (!hasX) continue;
      view.reset();  // from a zoom into what was there
      if (x) plot.below[0].axis_label = x;
      if (y && hasY) plot.left[0].axis_label = y === "bits" ? "bits per byte" : "nats per token";
      for (const renderer of plot.renderers) {
        const columns = renderer.data_source.data;
        const chosenY = y && hasY ? columns[y] : columns.y;
        renderer.data_source.data = {...columns, x: columns[x] || columns.x, y: chosenY};
        const tag = renderer.tags[0];
        const isShown = tag === undefined || !all("tag").includes(tag) || tags.includes(tag);
        const isRun = !all("run").includes(renderer.name) || runs.includes(renderer.name);
        renderer.visible = isShown && isRun;
      }
    }
  }
  document.querySelectorAll(".choices input").forEach((input) => {
    input.addEventListener("change", choose);
  });
  document.querySelectorAll(".choices").forEach((form) => form.reset());

  const sides = [...document.querySelectorAll(".text p")];
  const told = document.querySelector(".told");
  const tell = (event) => {
    const token = event.target.closest("p > span");
    if (!token) return;
    const at = [...token.parentNode.children].indexOf(token);
    document.querySelectorAll(".text .on").forEach((other) => other.classList.remove("on"));
    sides.forEach((side) => side.children[at].classList.add("on"));
    told.textContent = token.title;
  };
  sides.forEach((side) => ["pointerover", "click"].forEach((kind) => {
    side.addEventListener(kind, tell);
  }));
  document.documentElement.dataset.drawn = drawn.length;
})();
