"use strict";
/* One evaluation in a dialog: objective, learning curve, lineage, genes, layers, measures. */
globalThis.detail = (() => {
  const { element } = rows;
  let at = null; // {part, data, row, order}
  let drawn = []; // instances of ECharts

  const dialog = () => document.getElementById("detail");

  function open(part, data, row, order) {
    at = { part, data, row, order: order ?? Uint32Array.from({ length: data.count }, (_, i) => i) };
    fill();
    if (!dialog().open) dialog().showModal();
    document.getElementById("detail-title").focus();
    draw();
  }

  async function openJob(part, job) {
    const data = await rows.load(part);
    const row = rows.rowOf(data, job);
    if (row !== undefined) open(part, data, row, at?.part === part && dialog().open ? at.order : undefined);
  }

  function clear() {
    for (const chart of drawn) chart.dispose();
    drawn = [];
  }

  function fill() {
    clear();
    const { data, row, order } = at;
    const place = order.indexOf(row);
    const step = (text, to) => {
      const button = element("button", { type: "button", textContent: text, disabled: place < 0 || order[to] === undefined });
      button.addEventListener("click", () => { at.row = order[to]; fill(); draw(); dialog().querySelector(`[data-step="${text}"]`)?.focus(); });
      button.dataset.step = text;
      return button;
    };
    const close = element("button", { type: "button", textContent: "Close" });
    close.addEventListener("click", () => dialog().close());
    const head = element("div", { className: "head" },
      element("h2", { textContent: `Job ${data.job.raw(row)}`, tabIndex: -1, id: "detail-title" }),
      element("div", { className: "steps" }, step("Previous", place - 1), step("Next", place + 1), close));
    dialog().replaceChildren(head, ...[judged(data, row), curves(data, row), lineage(data, row), genes(data, row), layers(data, row), measures(data, row)].filter(Boolean));
    dialog().scrollTop = 0;
  }

  const block = (title, ...children) => element("section", {}, element("h3", { textContent: title }), ...children);

  function list(pairs) {
    const made = element("dl", { className: "pairs" });
    for (const [name, ...value] of pairs) made.append(element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...value)));
    return made;
  }

  function judged(data, row) {
    const objective = data.columns.get("objective");
    const status = data.columns.get("job_status").text(row);
    const error = data.columns.get("m:error")?.raw(row);
    const made = element("div", { className: "judged" });
    if (status === "DONE") {
      const value = objective.raw(row);
      const rest = [data.better];
      if (data.interval && value >= 0 && value <= 1) {
        // Wilson's interval, as report/scale.py has it.
        const [z, n] = [1.959964, data.interval];
        const centre = (value + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
        const reach = (z / (1 + z ** 2 / n)) * Math.sqrt((value * (1 - value)) / n + z ** 2 / (4 * n * n));
        rest.push(`95 % interval ${(centre - reach).toFixed(4)} to ${(centre + reach).toFixed(4)} from ${n.toLocaleString("en")} validation rows`);
      }
      made.append(element("p", { className: "value" }, element("strong", { textContent: objective.text(row) }), ` ${objective.label}`),
        element("p", { className: "note", textContent: rest.join("; ") }));
    } else {
      made.append(element("p", { className: "value" }, element("strong", { textContent: "failed" }), ` ${status}`),
        element("p", { className: "note", textContent: error ?? "The run does not say why; its logs do." }));
    }
    return made;
  }

  /* Where the values of an evaluation lie in a column that holds those of all end to end. */
  function span(data, kind, row) {
    const counts = data.columns.get(`${kind}:count`);
    if (!counts) return null;
    const starts = (data.starts ??= new Map());
    if (!starts.has(kind)) {
      const sums = new Float64Array(counts.length + 1);
      for (let i = 0; i < counts.length; i += 1) sums[i + 1] = sums[i] + counts.values[i];
      starts.set(kind, sums);
    }
    const sums = starts.get(kind);
    return sums[row + 1] > sums[row] ? [sums[row], sums[row + 1]] : null;
  }

  function curves(data, row) {
    const range = span(data, "curve", row);
    if (!range) {
      const why = data.columns.has("curve:count")
        ? "No epoch of it is here: the curves of the best 1,500 and of 500 failures come along."
        : "The run has no logs of epochs here.";
      return block("Learning curve", element("p", { className: "missing", textContent: why }));
    }
    const of = (name) => Array.from(data.columns.get(name).values.slice(...range), (value) => (Number.isNaN(value) ? null : value));
    const names = [...data.columns.keys()].filter((name) => name.startsWith("curve:") && name !== "curve:count" && name !== "curve:epoch");
    const epochs = of("curve:epoch");
    const groups = [["loss", names.filter((name) => /loss$/.test(name))],
      ["metric", names.filter((name) => !/loss$|learning_rate$/.test(name))]];
    const made = element("div", { className: "curves" });
    for (const [title, some] of groups) {
      const series = some.map((name, i) => ({ name: name.slice(6), x: epochs, y: of(name), colour: ["first", "second", "third", "fourth"][i % 4] }))
        .filter((one) => one.y.some((value) => value !== null))
        .map((one) => ({ ...one, type: one.y.filter((value) => value !== null).length > 1 ? "line" : "points", marked: true }));
      if (!series.length) continue;
      const chart = { kind: "xy", x: "epoch", y: title, series, x_whole: true };
      const text = series.map((one) => {
        const seen = one.y.filter((value) => value !== null);
        return seen.length > 1 ? `${one.name} from ${drawings.show(seen[0])} to ${drawings.show(seen.at(-1))}` : `${one.name} ${drawings.show(seen[0])}`;
      }).join(", ");
      const box = element("div", { className: "curve", role: "img", ariaLabel: `${title} over ${epochs.length} epochs: ${text}` });
      box.chart = chart;
      const parts = [box, element("p", { className: "note", textContent: text })];
      if (title === "loss" && series.every((one) => one.y.every((value) => value === null || value > 0))) {
        const log = element("input", { type: "checkbox" });
        log.addEventListener("change", () => { box.chart = { ...chart, y_log: log.checked }; draw(); });
        parts.push(element("label", { className: "log" }, log, " log axis"));
      }
      made.append(element("div", {}, ...parts));
    }
    return block("Learning curve", made);
  }

  function draw() {
    clear();
    for (const box of dialog().querySelectorAll(".curve")) {
      const instance = echarts.init(box);
      instance.setOption(drawings.xy(box.chart, drawings.theme(box)).option);
      drawn.push(instance);
    }
  }

  const jump = (part, job) => {
    const button = element("button", { type: "button", className: "link", textContent: `job ${job}` });
    button.addEventListener("click", () => openJob(part, job));
    return button;
  };

  /* The rows from the first ancestor to this one; a circle in a damaged file ends where it closes. */
  function descent(data, row) {
    const ancestors = data.columns.get("m:ancestor");
    const line = [row];
    while (ancestors) {
      const above = rows.rowOf(data, ancestors.values[line[0]]);
      if (above === undefined || line.includes(above)) break;
      line.unshift(above);
    }
    return line;
  }

  function lineage(data, row) {
    const ancestors = data.columns.get("m:ancestor");
    if (!ancestors) return null;
    const line = descent(data, row);
    const chain = element("p", { className: "chain" });
    const skipped = line.length > 14 ? line.splice(4, line.length - 12).length : 0;
    line.forEach((one, i) => {
      if (i) chain.append(" → ");
      if (skipped && i === 4) chain.append(`${skipped} more → `);
      const job = data.job.raw(one);
      chain.append(one === row ? element("strong", { textContent: `job ${job}` }) : jump(at.part, job));
    });
    if (line.length === 1) chain.append(ancestors.values[row] === -2 ? ", which inherits from a model of another run" : ", which inherits from no model of this run");
    const heirs = [];
    const own = data.job.values[row];
    for (let i = 0; i < data.count; i += 1) if (ancestors.values[i] === own) heirs.push(data.job.raw(i));
    const below = element("p", { className: "chain" });
    below.append(heirs.length ? `${heirs.length.toLocaleString("en")} inherited from it: ` : "No model inherited from it.");
    heirs.slice(0, 12).forEach((job, i) => below.append(i ? ", " : "", jump(at.part, job)));
    if (heirs.length > 12) below.append(", …");
    return block("Lineage", chain, below);
  }

  function genes(data, row) {
    const all = [...data.columns.values()].filter((column) => column.kind === "gene");
    if (!all.length) return null;
    const parent = rows.rowOf(data, data.columns.get("m:parent")?.values[row]);
    const changed = parent === undefined ? 0 : all.filter((column) => column.values[row] !== column.values[parent]).length;
    const pairs = all.map((column) => {
      const differs = parent !== undefined && column.values[row] !== column.values[parent];
      return [column.label, column.text(row), ...(differs ? [element("span", { className: "changed", textContent: ` was ${column.text(parent)}` })] : [])];
    });
    const title = parent === undefined ? "Genes" : `Genes, ${changed} other than its parent's (job ${data.job.raw(parent)})`;
    return block(title, list(pairs));
  }

  function layers(data, row) {
    const range = span(data, "layer", row);
    if (!range) return null;
    const texts = data.columns.get("layer:text");
    const taken = data.columns.get("layer:inherited");
    const made = element("ol", { className: "layers" });
    let count = 0;
    for (let i = range[0]; i < range[1]; i += 1) {
      const shared = taken.values[i] === 1;
      count += shared;
      made.append(element("li", { className: shared ? "inherited" : "" }, texts.raw(i), ...(shared ? [element("span", { className: "mark", textContent: "inherited" })] : [])));
    }
    return block(`Layers, ${count} of ${range[1] - range[0]} inherited`, made);
  }

  function measures(data, row) {
    const shown = data.shown.filter((column) => column.kind !== "gene" && !["objective", "job_id", "job_status", "m:error"].includes(column.name) && column.raw(row) !== null);
    return block("Measures", list(shown.map((column) => [column.label, column.text(row)])));
  }

  addEventListener("DOMContentLoaded", () => {
    dialog().addEventListener("close", clear);
    dialog().addEventListener("click", (event) => { if (event.target === dialog()) dialog().close(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (dialog().open) draw(); });
    addEventListener("resize", () => drawn.forEach((chart) => chart.resize()));
    dialog().addEventListener("keydown", (event) => {
      const step = { ArrowRight: "Next", ArrowLeft: "Previous" }[event.key];
      if (!step || event.target.matches("input")) return;
      dialog().querySelector(`[data-step="${step}"]:enabled`)?.click();
      event.preventDefault();
    });
  });

  return { open, openJob };
})();
