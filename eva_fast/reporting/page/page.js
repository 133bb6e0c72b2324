"use strict";
(() => {
  const $ = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (id) => JSON.parse($(id).textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const PALETTE = 8;

  // Curves. Every glyph of a run has the tag `run:N`.
  let plots = [];
  const runOf = (renderer) => Number(renderer.glyph.tags[0].slice(4));
  const marks = () => plots.flatMap((plot) => plot.renderers.map((renderer) => [plot, renderer]));

  function paint() {
    const ink = colour("--ink"), quiet = colour("--quiet"), line = colour("--line"), grid = colour("--grid");
    const font = getComputedStyle(document.body).fontFamily;
    for (const plot of plots) {
      for (const axis of [...plot.below, ...plot.left]) {
        axis.setv({
          major_label_text_color: quiet, axis_label_text_color: quiet, axis_line_color: line,
          major_label_text_font: font, axis_label_text_font: font,
        });
      }
      for (const part of plot.center) {
        if ("grid_line_color" in part.properties) part.grid_line_color = grid;
      }
      for (const renderer of plot.renderers) {
        const own = colour(`--run-${runOf(renderer) % PALETTE}`);
        for (const glyph of [renderer.glyph, renderer.nonselection_glyph, renderer.muted_glyph]) {
          if (!glyph || typeof glyph === "string") continue;
          if ("line_color" in glyph.properties) glyph.line_color = own;
          if ("fill_color" in glyph.properties) glyph.fill_color = own;
        }
      }
    }
  }

  function over(axis, words) {
    for (const [plot, renderer] of marks()) {
      for (const place of ["x", "x0", "x1"]) {
        if (place in renderer.glyph.properties) renderer.glyph[place] = { field: axis };
      }
      plot.below[0].axis_label = words;
    }
    for (const plot of plots) plot.reset.emit();
  }

  async function draw() {
    const places = all(".plot");
    if (!places.length) return;
    const roots = Object.fromEntries(places.map((place) => [place.dataset.root, place.id]));
    const item = { docid: "runs", roots, root_ids: Object.keys(roots) };
    await Bokeh.embed.embed_items({ runs: read("#document") }, [item]);
    plots = Bokeh.documents[0].roots();
    for (const plot of plots) {
      plot.on_event("doubletap", () => plot.reset.emit());
      if (matchMedia("(pointer: fine)").matches) {
        for (const tool of plot.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = true;
      }
    }
    paint();
    document.documentElement.dataset.drawn = "yes";
  }

  dark.addEventListener("change", paint);
  for (const radio of all("input[name=axis]")) {
    radio.addEventListener("change", () => over(radio.value, read("#axes")[radio.value]));
  }
  for (const box of all("input[name=run]")) {
    box.addEventListener("change", () => {
      for (const [, renderer] of marks()) {
        if (runOf(renderer) === Number(box.value)) renderer.visible = box.checked;
      }
    });
  }

  // Pictures: of each run the last one that it had drawn by then.
  const time = $("#time"), play = $("#play");
  function show() {
    const step = Number(time.dataset.steps.split(" ")[time.value]);
    const words = `step ${step.toLocaleString("en")}`;
    $("#at").textContent = words;
    time.setAttribute("aria-valuetext", words);
    for (const frames of all(".frames")) {
      const images = [...frames.querySelectorAll("img")];
      const drawn = images.filter((image) => Number(image.dataset.step) <= step);
      const now = drawn.length ? drawn[drawn.length - 1] : images[0];
      for (const image of images) image.hidden = image !== now;
      frames.querySelector(".shown").textContent = `step ${Number(now.dataset.step).toLocaleString("en")}`;
    }
  }
  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.firstElementChild.textContent = "▶";
  }
  if (time) {
    time.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (time.value === time.max) time.value = 0;
      play.setAttribute("aria-pressed", "true");
      play.firstElementChild.textContent = "❚❚";
      show();
      timer = setInterval(() => {
        if (time.value === time.max) return stop();
        time.value = Number(time.value) + 1;
        show();
      }, 500);
    });
    show();
  }
  for (const zoom of all(".zoom")) {
    zoom.addEventListener("click", () => {
      zoom.setAttribute("aria-pressed", String(zoom.getAttribute("aria-pressed") !== "true"));
    });
  }

  // Paper is white, and has no closed parts.
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    for (const part of all("details")) part.open = true;
    paint();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    paint();
  });

  draw();
})();
