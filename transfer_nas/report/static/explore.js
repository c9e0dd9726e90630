"use strict";
/* Charts that are drawn from every evaluation (static/rows.js), and those of what the best predicts. */
Object.assign(drawings, (() => {
  const { show, base, below, beside, room, inside, narrowed } = drawings;
  const { encodeHTML } = echarts.format;
  const MANY = 20_000; // points that are drawn one by one at most

  /* Pixels that labels of so many letters take below an axis when they are tilted. */
  const tall = (letters) => 18 + 0.87 * Math.min(110, 6.8 * letters);
  const tip = (...lines) => `<div class="tip">${lines.map((line) => encodeHTML(line)).join("<br>")}</div>`;

  /* The rows of evaluations that worked. */
  function good(data) {
    const objective = data.columns.get("objective").values;
    return Array.from({ length: data.count }, (_, i) => i).filter((i) => !Number.isNaN(objective[i]));
  }

  function scatter(chart, theme, data) {
    const [x, y] = [data.columns.get(chart.x), data.columns.get(chart.y)];
    const less = data.better.startsWith("lower") ? -1 : 1;
    let all = good(data).filter((i) => !Number.isNaN(x.values[i]));
    const left = all.filter((i) => (chart.x_log && x.values[i] <= 0) || (chart.y_log && y.values[i] <= 0)).length;
    if (left) all = all.filter((i) => !(chart.x_log && x.values[i] <= 0) && !(chart.y_log && y.values[i] <= 0));
    const cheap = chart.more ? -1 : 1;
    // Those that nothing cheaper is better than, the cheapest first.
    const front = [];
    let best = -Infinity;
    for (const i of [...all].sort((a, b) => cheap * (x.values[a] - x.values[b]) || less * (y.values[b] - y.values[a])))
      if (less * y.values[i] > best) { best = less * y.values[i]; front.push(i); }
    const step = Math.max(1, Math.ceil(all.length / MANY));
    const drawn = step === 1 ? all : all.filter((_, i) => i % step === 0);
    const point = (i) => ({ value: [x.values[i], y.values[i]], row: i });
    const say = (i) => `job ${data.job.raw(i)}: ${y.label} ${y.text(i)}, ${x.label} ${x.text(i)}`;
    const format = { bytes: "bytes", integer: "count" }[x.format] ?? "number";
    const name = x.format === "seconds" ? `${x.label.replace(/ seconds$/, "")} time, in seconds` : x.label;
    const dense = drawn.length > 1500;
    const shared = base(theme);
    return {
      stops: front.map((i, at) => ({ series: 1, index: at, row: i, text: say(i) })),
      note: left ? `${left.toLocaleString("en")} evaluations at or below zero have no place on a log axis.` : "",
      option: {
        ...shared,
        tooltip: { ...shared.tooltip, trigger: "item", formatter: (item) => tip(...say(item.data.row).split(/: |, /)) },
        legend: drawings.legend(theme, ["evaluations", "best for its size"]),
        grid: room(theme),
        xAxis: below(theme, name, format, narrowed(drawn.map((i) => x.values[i]), { scale: true, type: chart.x_log ? "log" : "value" })),
        yAxis: beside(theme, y.label, "number", narrowed(drawn.map((i) => y.values[i]), { scale: true, type: chart.y_log ? "log" : "value" })),
        dataZoom: [inside()],
        series: [
          { name: "evaluations", type: "scatter", data: drawn.map(point), symbolSize: dense ? 3 : 7, cursor: "pointer",
            itemStyle: { color: theme.first, opacity: dense ? 0.3 : 0.5 } },
          { name: "best for its size", type: "line", step: chart.more ? "start" : "end", data: front.map(point), symbolSize: 8, showSymbol: front.length < 60,
            lineStyle: { color: theme.accent, width: 2 }, itemStyle: { color: theme.accent }, z: 3 },
        ],
      },
    };
  }

  function quartiles(sorted) {
    const at = (share) => {
      const place = share * (sorted.length - 1);
      const low = Math.floor(place);
      return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
    };
    return [sorted[0], at(0.25), at(0.5), at(0.75), sorted.at(-1)];
  }

  function slice(chart, theme, data) {
    const gene = data.columns.get(chart.gene);
    const objective = data.columns.get("objective");
    const of = gene.texts.map(() => []);
    const failed = gene.texts.map(() => 0);
    for (let i = 0; i < data.count; i += 1) {
      const value = gene.values[i];
      if (Number.isNaN(value)) continue;
      if (Number.isNaN(objective.values[i])) failed[value] += 1;
      else of[value].push(i);
    }
    const tried = gene.texts.map((_, value) => value).filter((value) => of[value].length || failed[value]);
    const boxes = tried.map((value) => (of[value].length ? quartiles(of[value].map((i) => objective.values[i]).sort((a, b) => a - b)) : []));
    const total = tried.reduce((sum, value) => sum + of[value].length, 0);
    const step = Math.max(1, Math.ceil(total / 4000));
    const dots = tried.flatMap((value, place) => of[value].filter((_, i) => i % step === 0)
      .map((i, k) => ({ value: [place + 0.5 * (((k * 0.618034) % 1) - 0.5), objective.values[i]], row: i })));
    const say = (place) => {
      const value = tried[place];
      const counts = `${of[value].length.toLocaleString("en")} worked, ${failed[value].toLocaleString("en")} failed`;
      return `${gene.label} ${gene.texts[value]}: ${boxes[place].length ? `median ${show(boxes[place][2])}, from ${show(boxes[place][0])} to ${show(boxes[place][4])}, ` : ""}${counts}`;
    };
    const names = tried.map((value) => `${gene.texts[value]} (${of[value].length}${failed[value] ? `, ${failed[value]} failed` : ""})`);
    // Below the median, a few far below would leave no room for the rest.
    const sorted = dots.map((dot) => dot.value[1]).sort((a, b) => a - b);
    const shared = base(theme);
    const long = Math.max(0, ...names.map((name) => name.length));
    const tilted = names.length * long * 7 > (theme.narrow ? 300 : 1000);
    return { stops: tried.map((_, place) => ({ series: 0, index: place, text: say(place) })), option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "item", formatter: (item) => item.seriesIndex === 0
        ? tip(...say(item.dataIndex).split(/: |, /)) : tip(`job ${data.job.raw(item.data.row)}`, `${objective.label} ${objective.text(item.data.row)}`) },
      grid: room(theme, { top: 40, bottom: 38 }),
      xAxis: [
        { type: "category", data: names, name: gene.label, nameLocation: "middle", nameGap: tilted ? tall(long) : 30, nameTextStyle: { color: theme.ink2, fontSize: 13 },
          axisLabel: { color: theme.ink2, fontSize: 12, rotate: tilted ? 60 : 0, interval: 0, hideOverlap: false, width: 110, overflow: "truncate" },
          axisTick: { alignWithLabel: true }, axisLine: { lineStyle: { color: theme.muted } } },
        { type: "value", min: -0.5, max: names.length - 0.5, show: false },
      ],
      yAxis: beside(theme, objective.label, "number", narrowed(sorted, { scale: true })),
      series: [
        { type: "boxplot", data: boxes, itemStyle: { color: theme.tint, borderColor: theme.first, borderWidth: 1.5 }, boxWidth: [8, 46] },
        { type: "scatter", xAxisIndex: 1, data: dots, symbolSize: 4, cursor: "pointer", itemStyle: { color: theme.muted, opacity: total > 1500 ? 0.25 : 0.5 }, z: 3 },
      ],
    } };
  }

  function pairs(chart, theme, data) {
    const [a, b] = [data.columns.get(chart.gene), data.columns.get(chart.second)];
    const objective = data.columns.get("objective");
    const cells = new Map();
    for (const i of good(data)) {
      const key = `${a.values[i]} ${b.values[i]}`;
      const cell = cells.get(key) ?? { a: a.values[i], b: b.values[i], sum: 0, count: 0, best: objective.values[i] };
      cell.sum += objective.values[i];
      cell.count += 1;
      const better = data.better.startsWith("lower") ? objective.values[i] < cell.best : objective.values[i] > cell.best;
      if (better) cell.best = objective.values[i];
      cells.set(key, cell);
    }
    const found = [...cells.values()].filter((cell) => !Number.isNaN(cell.a) && !Number.isNaN(cell.b));
    const used = (column, key) => column.texts.map((_, i) => i).filter((i) => found.some((cell) => cell[key] === i));
    const [left, up] = [used(a, "a"), used(b, "b")];
    const data3 = found.map((cell) => ({ value: [left.indexOf(cell.a), up.indexOf(cell.b), cell.sum / cell.count], cell }));
    const means = data3.map((one) => one.value[2]).sort((x, y) => x - y);
    const tenth = Math.floor(means.length / 10);
    const less = data.better.startsWith("lower");
    const [low, high] = less ? [means[0], means.at(-1 - tenth)] : [means[tenth], means.at(-1)];
    const say = ({ cell, value }) => `${a.label} ${a.texts[cell.a]}, ${b.label} ${b.texts[cell.b]}: mean ${show(value[2])} of ${cell.count}, best ${show(cell.best)}`;
    const shared = base(theme);
    const labels = (column, of) => of.map((i) => column.texts[i]);
    const long = Math.max(0, ...labels(a, left).map((name) => name.length));
    const tilted = left.length * long * 7 > (theme.narrow ? 240 : 900);
    return { height: Math.min(760, Math.max(300, 150 + 24 * up.length + (tilted ? 60 : 0))),
      stops: data3.map((one, i) => ({ series: 0, index: i, text: say(one) })), option: {
        ...shared,
        tooltip: { ...shared.tooltip, trigger: "item", formatter: (item) => tip(...say(item.data).split(/: |, /)) },
        grid: room(theme, { top: 40, bottom: 76 }),
        xAxis: { type: "category", data: labels(a, left), name: a.label, nameLocation: "middle", nameGap: tilted ? tall(long) : 28, nameTextStyle: { color: theme.ink2, fontSize: 13 },
          axisLabel: { color: theme.ink2, interval: 0, rotate: tilted ? 60 : 0, width: 110, overflow: "truncate" }, axisLine: { lineStyle: { color: theme.muted } } },
        yAxis: { type: "category", data: labels(b, up), name: b.label, nameTextStyle: { color: theme.ink2, fontSize: 13, align: "left" }, axisLabel: { color: theme.ink2, width: 110, overflow: "truncate" },
          axisLine: { lineStyle: { color: theme.muted } } },
        visualMap: ramp(theme, low, high, less),
        series: [{ type: "heatmap", data: data3, itemStyle: { borderColor: theme.card, borderWidth: 1 }, emphasis: { itemStyle: { borderColor: theme.ink, borderWidth: 2 } } }],
      } };
  }

  const ramp = (theme, low, high, less = false) => ({
    type: "continuous", min: low, max: high > low ? high : low + 1e-9, orient: "horizontal", left: "center", bottom: 0, itemHeight: 160, itemWidth: 14,
    precision: 4, calculable: false, text: [`${show(high)} ${less ? "worse" : "better"}`, `${less ? "better" : "worse"} ${show(low)}`], textStyle: { color: theme.ink2 }, formatter: (value) => show(value),
    inRange: { color: less ? [...theme.heat].reverse() : theme.heat },
  });

  /* How often each class was taken for which: rows are what is true. */
  function confusion(chart, theme) {
    const names = chart.classes;
    const data = [];
    chart.counts.forEach((line, i) => line.forEach((count, j) => {
      const total = line.reduce((sum, one) => sum + one, 0);
      const share = total ? count / total : 0;
      if (count) data.push({ value: [j, i, share], count, total, label: { color: share > 0.5 ? theme.card : theme.ink } });
    }));
    const say = (one) => `true ${names[one.value[1]]}, predicted ${names[one.value[0]]}: ${one.count} of ${one.total} rows, ${show(one.value[2], "percent")}`;
    const shared = base(theme);
    const label = names.length <= (theme.narrow ? 10 : 26);
    return { height: Math.min(760, 150 + 32 * names.length), stops: data.map((one, i) => ({ series: 0, index: i, text: say(one) })), option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "item", formatter: (item) => tip(...say(item.data).split(/: |, /)) },
      grid: room(theme, { top: 34, bottom: 40 }),
      xAxis: { type: "category", data: names, name: "predicted class", nameLocation: "middle", nameGap: 28, nameTextStyle: { color: theme.ink2, fontSize: 13 },
        axisLabel: { color: theme.ink2 }, axisLine: { lineStyle: { color: theme.muted } } },
      yAxis: { type: "category", data: names, inverse: true, name: "true class", nameLocation: "start", nameTextStyle: { color: theme.ink2, fontSize: 13, align: "left" },
        axisLabel: { color: theme.ink2 }, axisLine: { lineStyle: { color: theme.muted } } },
      visualMap: { show: false, type: "continuous", min: 0, max: 1, dimension: 2, inRange: { color: [theme.card, theme.heat[1], theme.heat.at(-1)] } },
      series: [{ type: "heatmap", data, itemStyle: { borderColor: theme.line, borderWidth: 1 },
        label: { show: label, formatter: (item) => item.data.count },
        emphasis: { itemStyle: { borderColor: theme.ink, borderWidth: 2 } } }],
    } };
  }

  return { scatter, slice, pairs, confusion };
})());
