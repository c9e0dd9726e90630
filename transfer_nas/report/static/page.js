"use strict";
/* Draws charts when they come into view, in the colours and at the width of the moment; keys; copying;
   on a live page, takes what is new. */
(() => {
  let charts = JSON.parse(document.getElementById("charts").textContent);
  const live = "live" in document.documentElement.dataset;
  const drawn = new Map(); // element -> {chart, stops, at}
  const turns = new Map(); // element -> number of its last drawing
  let following = new Set(); // elements that are watched for coming into view
  rows.take(JSON.parse(document.getElementById("rows").textContent));

  /* The data of a chart as the reader has chosen: which of several, with what, on which axes. */
  function chosen(element) {
    const variants = charts[element.dataset.chart];
    const figure = element.closest("figure");
    const which = figure.querySelector("input[type=radio]:checked, select[data-which]");
    const chart = { ...variants[which ? which.value : Object.keys(variants)[0]] };
    const second = figure.querySelector("select[data-second]");
    if (second) chart.second = second.value;
    for (const box of figure.querySelectorAll("input[data-log]")) if (box.checked) chart[`${box.dataset.log}_log`] = true;
    return chart;
  }

  async function draw(element) {
    const data = chosen(element);
    const number = (turns.get(element) ?? 0) + 1;
    turns.set(element, number);
    const evaluations = data.rows ? await rows.load(element.dataset.chart.split("-")[0]) : null;
    if (turns.get(element) !== number || !element.isConnected) return; // a later call draws, or nobody
    const made = drawings[data.kind](data, drawings.theme(element), evaluations);
    const variant = JSON.stringify([data.kind, data.x, data.y, data.x_log, data.y_log, data.gene, data.second]);
    keep(drawn.get(element), element, made.option, variant);
    element.style.height = made.height ? `${made.height}px` : "";
    element.style.minWidth = made.width ? `${made.width}px` : "";
    let entry = drawn.get(element);
    if (!entry) {
      entry = { chart: echarts.init(element) };
      drawn.set(element, entry);
      sizes.observe(element);
      entry.chart.on("click", (event) => {
        const row = event.data?.row;
        if (row !== undefined) detail.open(element.dataset.chart.split("-")[0], entry.rows, row);
      });
    }
    entry.chart.resize();
    entry.chart.setOption(made.option, { notMerge: true });
    entry.stops = made.stops;
    entry.rows = evaluations;
    entry.at = -1;
    entry.narrow = element.parentElement.clientWidth < 560;
    element.dataset.drawn = data.kind;
    element.removeAttribute("aria-busy");
    const note = element.closest("figure").querySelector("output");
    note.textContent = made.note ?? "";
    if (performance.getEntriesByName("first-chart").length === 0) performance.mark("first-chart");
  }

  /* Keeps what the reader has zoomed to and which series are off, if it is the same chart. */
  function keep(entry, element, option, variant) {
    const before = entry && element.dataset.variant === variant ? entry.chart.getOption() : undefined;
    element.dataset.variant = variant;
    if (!before) return;
    (option.dataZoom || []).forEach((zoom, i) => {
      const { start, end } = before.dataZoom?.[i] ?? {};
      if (start !== undefined && (start > 0 || end < 100)) Object.assign(zoom, { start, end });
    });
    if (option.legend && before.legend?.[0]?.selected) option.legend.selected = before.legend[0].selected;
  }

  /* Tables and drawings that are wider than their place say on which side there is more. */
  const WIDE = "main .scroll, main .across";
  const edges = (element) => {
    const right = element.scrollLeft + element.clientWidth < element.scrollWidth - 1;
    const more = [element.scrollLeft > 1 ? "left" : "", right ? "right" : ""].filter(Boolean).join(" ");
    if (more) element.dataset.more = more; else delete element.dataset.more;
    const wide = element.scrollWidth > element.clientWidth + 1;
    const hint = element.nextElementSibling?.classList.contains("sideways") ? element.nextElementSibling : null;
    if (wide && !hint) element.after(rows.element("p", { className: "sideways", textContent: "wider than the page: scroll sideways ↔" }));
    else if (!wide) hint?.remove();
  };
  const widths = new ResizeObserver((entries) => { 
    for (const { target } of entries) {
      const element = target.closest(WIDE); // none of what has left the page
      if (element) edges(element);
    }
  });
  document.addEventListener("scroll", (event) => {
    if (event.target.matches?.(WIDE)) edges(event.target);
  }, true);
  rows.onTable = (view) => { widths.observe(view); widths.observe(view.firstChild); };
  function watchEdges() {
    for (const element of document.querySelectorAll(WIDE)) {
      widths.observe(element);
      if (element.firstElementChild) widths.observe(element.firstElementChild);
    }
  }

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const entry = drawn.get(target);
      if (!entry || target.clientWidth === 0) continue;
      if (entry.narrow !== target.parentElement.clientWidth < 560) draw(target);
      else entry.chart.resize();
    }
  });
  const views = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      begin(target);
    }
  }, { rootMargin: "200px 0px" });

  function begin(element) {
    views.unobserve(element);
    following.delete(element);
    if (element.dataset.rows) rows.show(element); else draw(element);
  }

  function redrawAll() { for (const element of drawn.keys()) draw(element); }

  function follow() {
    for (const element of document.querySelectorAll("[data-chart], [data-rows]")) {
      following.add(element);
      views.observe(element);
    }
    choose();
    watchEdges();
  }

  /* With several runs, the details of one at a time. */
  function choose() {
    const select = document.getElementById("run");
    if (!select) return;
    for (const part of document.querySelectorAll("[data-part]")) part.hidden = part.dataset.part !== select.value;
    for (const item of document.querySelectorAll("[data-of]")) item.hidden = item.dataset.of !== select.value;
  }

  document.addEventListener("change", (event) => {
    if (event.target.id === "run") choose();
    const figure = event.target.matches("input, select") && event.target.closest("figure");
    if (figure) draw(figure.querySelector("[data-chart]"));
  });

  document.addEventListener("keydown", (event) => {
    const entry = drawn.get(event.target);
    if (!entry || event.ctrlKey || event.altKey || event.metaKey) return;
    const last = entry.stops.length - 1;
    const steps = { ArrowRight: entry.at + 1, ArrowLeft: entry.at - 1, Home: 0, End: last };
    if (event.key in steps && last >= 0) go(event.target, entry, Math.min(Math.max(steps[event.key], 0), last));
    else if (event.key === "Enter" && entry.stops[entry.at]?.row !== undefined)
      detail.open(event.target.dataset.chart.split("-")[0], entry.rows, entry.stops[entry.at].row);
    else if (event.key === "Escape") leave(event.target, entry);
    else if (event.key === "+" || event.key === "=") zoom(entry, 0.5);
    else if (event.key === "-") zoom(entry, 2);
    else if (event.key === "0") zoom(entry, Infinity);
    else return;
    event.preventDefault();
  });

  function go(element, entry, at) {
    const stop = entry.stops[at];
    if (entry.at >= 0) entry.chart.dispatchAction({ type: "downplay", seriesIndex: entry.stops[entry.at].series });
    entry.at = at;
    const where = { seriesIndex: stop.series, dataIndex: stop.index };
    entry.chart.dispatchAction({ type: "highlight", ...where });
    // ECharts finds no place for the tip of a line of parallel coordinates.
    if (element.dataset.drawn !== "parallel") entry.chart.dispatchAction({ type: "showTip", ...where });
    element.closest("figure").querySelector("output").textContent = stop.text;
  }

  function leave(element, entry) {
    entry.chart.dispatchAction({ type: "hideTip" });
    if (entry.at >= 0) entry.chart.dispatchAction({ type: "downplay", seriesIndex: entry.stops[entry.at].series });
    entry.at = -1;
    element.closest("figure").querySelector("output").textContent = "";
  }

  function zoom(entry, factor) {
    const now = (entry.chart.getOption().dataZoom || [])[0];
    if (!now) return;
    const width = Math.min(100, (now.end - now.start) * factor);
    const stop = entry.stops[entry.at];
    let centre = (now.start + now.end) / 2;
    if (stop && stop.x !== undefined) {
      const all = entry.stops.map((one) => one.x);
      centre = (100 * (stop.x - all[0])) / (all.at(-1) - all[0] || 1);
    }
    const start = Math.min(Math.max(0, centre - width / 2), 100 - width);
    entry.chart.dispatchAction({ type: "dataZoom", start, end: start + width });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-job]");
    if (button) detail.openJob(button.dataset.in, Number(button.dataset.job));
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without the right to the clipboard: the old way.
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const before = button.innerHTML;
    button.textContent = "Copied";
    setTimeout(() => { button.innerHTML = before; }, 1500);
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    for (const element of [...following]) if (element.offsetParent) begin(element);
    redrawAll();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    redrawAll();
  });

  if (live) {
    const status = document.getElementById("live");
    const events = new EventSource("events");
    let ended = false;
    const say = (text) => { status.textContent = ended ? "the run has ended" : text; };
    events.onopen = () => say("live");
    events.onerror = () => say("no connection");
    events.addEventListener("changed", async () => {
      const fresh = await (await fetch("now.json")).json();
      charts = fresh.charts;
      rows.take(fresh.rows);
      replace(fresh.main);
      say(`live, ${new Date().toLocaleTimeString()}`);
    });
    events.addEventListener("ended", () => { events.close(); ended = true; say(); });
  }

  /* Puts new texts and tables in, and keeps charts that are there, choices, scroll and focus. */
  function replace(html) {
    const inputs = "main figure input, main figure select";
    const choices = new Map([...document.querySelectorAll(inputs)].map((one) => [`${one.name} ${one.type === "radio" ? one.value : ""}`, one]));
    const run = document.getElementById("run")?.value;
    const open = [...document.querySelectorAll("main details")].map((details) => details.open);
    const focus = document.activeElement?.dataset?.chart;
    const kept = new Map([...drawn.keys()].map((element) => [element.dataset.chart, element]));
    const tables = new Map(rows.known().map((element) => [element.dataset.rows, element]));
    const scrolled = new Map([...tables.values()].map((element) => [element, element.querySelector(".grid").scrollTop]));
    const main = document.getElementById("main");
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    for (const element of fresh.content.querySelectorAll("[data-chart]")) {
      const old = kept.get(element.dataset.chart);
      if (!old) continue;
      old.setAttribute("aria-label", element.getAttribute("aria-label"));
      element.replaceWith(old);
      kept.delete(element.dataset.chart);
    }
    for (const element of fresh.content.querySelectorAll("[data-rows]")) {
      const old = tables.get(element.dataset.rows);
      if (old) element.replaceWith(old);
      tables.delete(element.dataset.rows);
    }
    for (const gone of tables.values()) rows.forget(gone);
    for (const gone of kept.values()) { drawn.get(gone).chart.dispose(); drawn.delete(gone); }
    const height = main.offsetHeight;
    main.style.minHeight = `${height}px`;
    views.disconnect();
    following = new Set();
    main.replaceChildren(fresh.content);
    for (const input of document.querySelectorAll(inputs)) {
      const before = choices.get(`${input.name} ${input.type === "radio" ? input.value : ""}`);
      if (!before) continue;
      if (input.type === "select-one") input.value = [...input.options].some((one) => one.value === before.value) ? before.value : input.value;
      else input.checked = before.checked;
    }
    for (const [element, top] of scrolled) if (element.isConnected) element.querySelector(".grid").scrollTop = top;
    if (run && document.getElementById("run")) document.getElementById("run").value = run;
    [...main.querySelectorAll("details")].forEach((details, i) => { if (i in open) details.open = open[i]; });
    for (const element of main.querySelectorAll("[data-chart], [data-rows]"))
      if (!drawn.has(element) && !scrolled.has(element)) { following.add(element); views.observe(element); }
    choose();
    watchEdges();
    redrawAll();
    main.style.minHeight = "";
    if (focus) main.querySelector(`[data-chart="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }

  follow();
})();
