"use strict";
/* From the data of a chart (report/charts.py) to options of Apache ECharts. Every function takes the
   data and the theme and returns the option and `stops`: where the arrow keys go, with a text each. */
globalThis.drawings = (() => {
  const { encodeHTML } = echarts.format;

  const units = ["", "k", "M", "G", "T"];
  const formats = {
    number: (value) => {
      if (value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e7))
        return String(Number(value.toPrecision(4)));
      return String(Number(value.toPrecision(3)));
    },
    percent: (value) => `${Number((100 * value).toPrecision(3))} %`,
    bytes: (value) => {
      let unit = 0;
      while (Math.abs(value) >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
      return `${Number(value.toPrecision(3))} ${units[unit]}B`;
    },
  };
  const theme = (element) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const names = ["card", "ink", "line", "grid", "first", "second", "third", "fourth", "fifth", "accent", "muted", "tint"];
    const colours = Object.fromEntries(names.map((name) => [name, colour(name)]));
    return { ...colours, ink2: colour("ink-2"), ramp: [colour("muted"), colour("first"), colour("accent")],
      heat: [colour("cold"), colour("warm"), colour("hot")],
      font: getComputedStyle(document.body).fontFamily, narrow: element.parentElement.clientWidth < 560 };
  };

  const shortened = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
  /* At an axis: large counts in thousands and millions. */
  const brief = (value) => {
    if (Math.abs(value) < 10_000) return formats.number(value);
    const thousands = Math.min(3, Math.floor(Math.log10(Math.abs(value)) / 3));
    return `${Number((value / 1000 ** thousands).toPrecision(4))}${units[thousands]}`;
  };
  formats.count = brief;
  const show = (value, format = "number") => (value === null ? "–" : formats[format](value));

  /* What all charts have: no animation, the page's colours and font, zooming that leaves scrolling alone. */
  const base = (theme) => ({
    animation: false,
    backgroundColor: "transparent",
    textStyle: { color: theme.ink, fontFamily: theme.font, fontSize: 13 },
    tooltip: {
      confine: true,
      backgroundColor: theme.card,
      borderColor: theme.line,
      textStyle: { color: theme.ink, fontSize: 13 },
      extraCssText: "max-width: 22rem; white-space: normal;",
    },
  });

  const axis = (theme, name, format, extra = {}) => ({
    type: "value",
    name,
    nameTextStyle: { color: theme.ink2, fontSize: 13 },
    axisLine: { show: true, onZero: false, lineStyle: { color: theme.muted } },
    axisLabel: { color: theme.ink2, fontSize: 12, hideOverlap: true, formatter: (value) => show(value, format) },
    splitLine: { lineStyle: { color: theme.grid } },
    ...extra,
  });
  const below = (theme, name, format, extra = {}) =>
    axis(theme, name, format, { nameLocation: "middle", nameGap: 30, splitLine: { show: false }, ...extra });
  const beside = (theme, name, format, extra = {}) =>
    axis(theme, name, format, { nameLocation: "end", nameGap: 12,
      nameTextStyle: { color: theme.ink2, fontSize: 13, align: "left" }, ...extra });

  /* One value alone: an axis close around it, where ECharts' own would reach from half to twice it. */
  function narrowed(values, extra) {
    const real = values.filter((value) => value !== null && Number.isFinite(value));
    const [low, high] = real.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    if (low !== high || extra.type === "log") return extra;
    const reach = Math.abs(low) / 50 || 1;
    return { ...extra, min: low - reach, max: low + reach };
  }

  /* From the first to the last value, without labels that are no round numbers. */
  const whole = (theme, format, zero) => ({ min: zero ? 0 : "dataMin", max: "dataMax",
    axisLabel: { color: theme.ink2, fontSize: 12, hideOverlap: true, showMinLabel: Boolean(zero), showMaxLabel: false,
      formatter: (value) => show(value, format) } });

  const legend = (theme, names) => ({
    type: "scroll", top: 0, right: 0, left: theme.narrow ? 0 : "center", data: names,
    icon: "roundRect", itemWidth: 16, itemHeight: 9,
    textStyle: { color: theme.ink }, inactiveColor: theme.muted,
    pageIconColor: theme.first, pageTextStyle: { color: theme.ink2 },
  });
  const room = (theme, extra = {}) =>
    ({ left: 8, right: 26, top: 62, bottom: 34, containLabel: true, ...extra });
  const inside = () => ({ type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, filterMode: "none" });

  function band(theme, name, x, low, high, colour, opacity) {
    const rows = x.map((value, i) => [value, low[i], high[i]]).filter((row) => row[1] !== null && row[2] !== null);
    return {
      name, type: "custom", silent: true, clip: true, data: rows, encode: { x: 0, y: [1, 2] },
      itemStyle: { color: colour, opacity },
      renderItem: (params, api) => {
        if (params.dataIndex !== 0) return null;
        const up = rows.map((row) => api.coord([row[0], row[2]]));
        const down = rows.map((row) => api.coord([row[0], row[1]])).reverse();
        return { type: "polygon", shape: { points: [...up, ...down] }, style: { fill: colour, opacity } };
      },
    };
  }

  /* Series on each other: each becomes the band between the sum below it and with it. */
  function stacked(chart, theme) {
    let sums = chart.series.length ? chart.series[0].x.map(() => 0) : [];
    return chart.series.map((one) => {
      const low = sums;
      sums = sums.map((sum, i) => sum + (one.y[i] || 0));
      return band(theme, one.name, one.x, low, sums, theme[one.colour], 0.85);
    });
  }

  function xy(chart, theme) {
    const stops = [];
    const series = chart.stack ? stacked(chart, theme) : chart.series.map((one) => {
      const colour = theme[one.colour];
      if (one.type === "band") return band(theme, one.name, one.x, one.low, one.high, colour, 0.18);
      const data = one.x.map((value, i) => [value, chart.y_log && !(one.y[i] > 0) ? null : one.y[i]]);
      if (one.type === "points") {
        const many = data.length > 1500;
        return { name: one.name, type: "scatter", data, symbolSize: many ? 3 : 6, labels: one.labels,
          itemStyle: { color: colour, opacity: one.marked ? 1 : many ? 0.3 : 0.45 }, z: 1 };
      }
      const step = { step: "end", stairs: "start" }[one.type] ?? false;
      return { name: one.name, type: "line", data, showSymbol: one.marked || data.length === 1, symbolSize: 7, step, connectNulls: Boolean(one.marked),
        lineStyle: { color: colour, width: one.thin ? 1 : 2.5, opacity: one.thin ? 0.55 : 1 },
        itemStyle: { color: colour }, z: one.thin ? 2 : 3 };
    });
    const main = pick(chart);
    if (main) {
      const step = Math.max(1, Math.floor(main.x.length / 200));
      for (let i = 0; i < main.x.length; i += step) {
        const label = main.labels && main.labels[i] ? `${main.labels[i]}, ` : "";
        stops.push({ series: chart.series.indexOf(main), index: i, x: main.x[i],
          text: `${main.name}: ${label}${show(main.y[i], chart.y_format)} at ${show(main.x[i], chart.x_format)} ${chart.x}` });
      }
    }
    const formatter = (items) => {
      const lines = [`<b>${show(items[0].axisValue, chart.x_format)}</b> ${encodeHTML(chart.x)}`];
      const seen = new Set();
      for (const item of items) {
        const source = chart.series[item.seriesIndex];
        if (source.type === "band" || seen.has(item.seriesIndex) || seen.size > 11) continue;
        seen.add(item.seriesIndex);
        const y = chart.stack ? source.y[item.dataIndex] : item.value[1];
        const label = source.labels && source.labels[item.dataIndex];
        lines.push(`${item.marker}${encodeHTML(source.name)}${label ? ` (${encodeHTML(label)})` : ""}: <b>${show(y, chart.y_format)}</b>`);
      }
      return `<div class="tip">${lines.join("<br>")}</div>`;
    };
    const shared = base(theme);
    return { stops, option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "axis", axisPointer: { type: "line", lineStyle: { color: theme.muted } }, formatter },
      legend: legend(theme, chart.series.filter((one) => !one.thin && !/: (area|all runs)$/.test(one.name)).map((one) => one.name)),
      grid: room(theme),
      xAxis: below(theme, chart.x, chart.x_format, { ...scaled(chart, theme), inverse: Boolean(chart.x_inverse) }),
      yAxis: beside(theme, chart.y, chart.y_format, chart.y_log ? { type: "log" } : narrowed(chart.y_zero ? [] : heights(chart),
        { scale: !chart.y_zero, min: chart.y_min ?? (chart.y_zero ? 0 : null), max: chart.y_max ?? null })),
      dataZoom: [inside()],
      series,
    } };
  }

  function scaled(chart, theme) {
    if (chart.x_log) return { type: "log" };
    if (chart.x_whole) return { min: "dataMin", max: "dataMax", minInterval: 1 };
    const ends = chart.series.flatMap((one) => [one.x[0], one.x.at(-1)]).filter((x) => x !== undefined);
    const alone = narrowed(ends, {});
    return alone.min === undefined ? whole(theme, chart.x_format, chart.x_zero) : chart.x_zero ? { min: 0 } : alone;
  }

  const heights = (chart) => chart.series.flatMap((one) => (one.type === "band" ? [...one.low, ...one.high] : one.y));

  /* The series that the arrow keys walk: the thick line that comes last. */
  function pick(chart) {
    const lines = chart.series.filter((one) => one.type !== "band" && one.x.length);
    return lines.filter((one) => one.type !== "points" && !one.thin).pop() || lines.pop();
  }

  function gantt(chart, theme) {
    const stops = [];
    const series = chart.phases.map((phase, p) => {
      const colour = theme[chart.colours[p]];
      const waits = phase === "ask" || phase === "other";
      const data = [];
      chart.bounds.forEach((bounds, i) => {
        if (bounds[p + 1] > bounds[p]) data.push([bounds[p], bounds[p + 1], chart.rank[i], i]);
      });
      return {
        name: phase, type: "custom", clip: true, encode: { x: [0, 1], y: 2 }, data,
        itemStyle: { color: colour, opacity: waits ? 0.35 : 1 },
        renderItem: (params, api) => {
          const begin = api.coord([api.value(0), api.value(2)]);
          const end = api.coord([api.value(1), api.value(2)]);
          const height = Math.min(28, api.size([0, 1])[1] * (waits ? 0.25 : 0.7));
          const shape = { x: begin[0], y: begin[1] - height / 2, width: Math.max(end[0] - begin[0], 0.4), height };
          const area = params.coordSys;
          const clipped = echarts.graphic.clipRectByRect(shape, area);
          return clipped && { type: "rect", shape: clipped, style: { fill: colour, opacity: waits ? 0.35 : 1 } };
        },
      };
    });
    const failed = chart.failed.map((i) => [chart.bounds[i].at(-1), chart.rank[i], i]);
    if (failed.length) series.push({ name: "failed", type: "scatter", symbol: "diamond", symbolSize: 11, data: failed,
      encode: { x: 0, y: 1 }, itemStyle: { color: theme.second, borderColor: theme.card, borderWidth: 1 } });
    const train = chart.phases.indexOf("train");
    const step = Math.max(1, Math.floor(chart.bounds.length / 400));
    let position = -1;
    chart.bounds.forEach((bounds, i) => {
      if (bounds[train + 1] <= bounds[train]) return;
      position += 1;
      if (i % step === 0) stops.push({ series: train, index: position, text: tell(chart, i) });
    });
    const shared = base(theme);
    return { stops, height: Math.max(theme.narrow ? 260 : 300, 150 + 44 * chart.ranks.length), option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "item",
        formatter: (item) => `<div class="tip">${encodeHTML(tell(chart, item.value.at(-1))).replaceAll("; ", "<br>")}</div>` },
      legend: legend(theme, series.map((one) => one.name)),
      grid: room(theme, { top: 44, bottom: 78 }),
      xAxis: below(theme, chart.x, "number", whole(theme, "number", false)),
      yAxis: { type: "category", data: chart.ranks, inverse: true, axisLabel: { color: theme.ink },
        axisLine: { lineStyle: { color: theme.muted } }, axisTick: { show: false } },
      dataZoom: [inside(), slider(theme)],
      series,
    } };
  }

  const slider = (theme) => ({
    type: "slider", height: 22, bottom: 6, filterMode: "none", showDataShadow: false, borderColor: theme.muted,
    fillerColor: theme.tint, handleStyle: { color: theme.first, borderColor: theme.first },
    moveHandleStyle: { color: theme.muted }, textStyle: { color: theme.ink2 }, brushSelect: false,
    labelFormatter: (value) => show(Number(value)),
  });

  function tell(chart, i) {
    const bounds = chart.bounds[i];
    const parts = chart.phases.map((phase, p) => [phase, bounds[p + 1] - bounds[p]]).filter((part) => part[1] > 0);
    return [chart.labels[i], chart.ranks[chart.rank[i]], ...parts.map(([phase, seconds]) => `${phase} ${show(seconds)} s`)].join("; ");
  }

  function lineage(chart, theme) {
    const scale = chart.line > 40 ? 0.5 : 1;
    const named = chart.line <= (theme.narrow ? 10 : 24);
    // The line of descent is drawn last, in front.
    const order = [...chart.generation.keys()].sort((a, b) => (a < chart.line) - (b < chart.line));
    const nodes = order.map((i) => {
      const main = i < chart.line;
      const last = i === chart.line - 1;
      const size = scale * (7 + 13 * chart.share[i]);
      return {
        name: String(i), value: [chart.generation[i], chart.objective[i]], symbolSize: main ? size + 2 : size,
        itemStyle: main
          ? { color: last ? theme.accent : theme.first, borderColor: theme.card, borderWidth: 1 }
          : { color: theme.card, borderColor: theme.muted, borderWidth: 1.5 },
        label: { show: main && (last || i === 0 || named), position: "top", color: theme.ink, fontSize: 12,
          textBorderColor: theme.card, textBorderWidth: 3, formatter: chart.labels[i].split(":")[0].replace("job ", "") },
      };
    });
    const links = chart.edges.map(([from, to]) => {
      const main = to < chart.line;
      return { source: String(from), target: String(to),
        lineStyle: { color: main ? theme.first : theme.muted, width: main ? 1 + 2 * scale : 1, opacity: main ? 1 : 0.5 } };
    });
    // The line of descent from left to right, then the others.
    const stops = chart.generation.map((_, i) =>
      ({ series: 0, index: order.indexOf(i), text: `${chart.labels[i]}; objective ${show(chart.objective[i])}` }));
    const shared = base(theme);
    return { stops, option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "item", formatter: (item) => item.dataType === "edge" ? "" :
        `<div class="tip">${encodeHTML(stops[order[item.dataIndex]].text).replaceAll("; ", "<br>").replaceAll(": ", "<br>")}</div>` },
      grid: room(theme, { top: 40, right: 30, left: 14 }),
      xAxis: below(theme, chart.x, "number", { min: -0.3, max: Math.max(...chart.generation) + 0.3,
        axisLabel: { color: theme.ink2, hideOverlap: true, customValues: [...new Set(chart.generation)] },
        axisTick: { customValues: [...new Set(chart.generation)] } }),
      yAxis: beside(theme, chart.y, "number", narrowed(chart.objective, { scale: true })),
      dataZoom: [inside()],
      series: [{ type: "graph", coordinateSystem: "cartesian2d", data: nodes, links, clip: true,
        edgeSymbol: ["none", chart.line < 60 ? "arrow" : "none"], edgeSymbolSize: 7,
        emphasis: { focus: "adjacency" } }],
    } };
  }

  function parallel(chart, theme) {
    const count = chart.axes.length;
    const real = chart.objective.filter((value) => value !== null);
    // The worst are outliers more often than not: colours start at the lowest tenth.
    const way = chart.less ? -1 : 1;
    const ordered = [...real].sort((a, b) => way * (a - b));
    const ends = [ordered[Math.floor(ordered.length / 10)], ordered.at(-1)];
    const [low, high] = chart.less ? ends.reverse() : ends;
    const worst = ordered[Math.floor(ordered.length / 50)]; // what is worse ends there
    const cut = (value) => (way * value < way * worst ? worst : value);
    // Lines of one value are spread around it, so that many look like many.
    const spread = (i, a) => 0.5 * (((i * 0.618034 + a * 0.37) % 1) - 0.5);
    const data = chart.rows.map((row, i) => [...row.map((value, a) => Math.max(value, 0) + spread(i, a)), cut(chart.objective[i])]);
    const stops = chart.rows.map((row, i) => ({ series: 0, index: i,
      text: `${chart.labels[i]}; ${chart.name} ${show(chart.objective[i])}; `
        + row.map((value, a) => `${chart.axes[a].name} ${chart.axes[a].values[value] ?? "?"}`).join("; ") })).reverse();
    // Labels lie on cards of their own in front of the lines.
    const text = { color: theme.ink, fontSize: 11, backgroundColor: theme.card, padding: [1, 3], borderRadius: 3 };
    const line = { lineStyle: { color: theme.muted } };
    const area = { activeOpacity: 0.9, inactiveOpacity: 0.04 };
    const pick = { areaSelectStyle: { width: 22, borderColor: theme.accent, color: theme.tint, opacity: 0.5 } };
    const shared = base(theme);
    const longest = Math.max(...chart.axes.map((one) => one.values.length));
    return { stops, width: 120 * (count + 1), height: Math.max(360, 130 + 17 * Math.min(longest, 40)), option: {
      ...shared,
      tooltip: { ...shared.tooltip, trigger: "item",
        formatter: (item) => `<div class="tip">${encodeHTML(stops[stops.length - 1 - item.dataIndex].text).replaceAll("; ", "<br>")}</div>` },
      visualMap: { type: "continuous", min: low, max: high > low ? high : low + 1e-9, dimension: count, orient: "horizontal", left: "center",
        bottom: 0, precision: 4, itemHeight: 160, calculable: true, text: chart.less ? ["worse", "better"] : ["better", "worse"], textStyle: { color: theme.ink2 },
        formatter: (value) => show(value), inRange: { color: chart.less ? [...theme.ramp].reverse() : theme.ramp, opacity: chart.less ? [0.95, 0.45, 0.25] : [0.25, 0.45, 0.95] } },
      parallel: { left: 64, right: 88, top: 46, bottom: 64, parallelAxisDefault: {
        nameLocation: "end", nameGap: 18, nameTextStyle: { color: theme.ink, fontSize: 12 }, z: 20, ...pick } },
      parallelAxis: [
        ...chart.axes.map((one, a) => ({ dim: a, name: one.name, type: "value", min: -0.5, max: one.values.length - 0.5,
          axisLine: line, axisTick: { show: false },
          axisLabel: { ...text, customValues: one.values.map((_, i) => i), hideOverlap: true,
            formatter: (value) => shortened(one.values[value] ?? "", 14) } })),
        { dim: count, name: chart.name, type: "value", inverse: Boolean(chart.less), nameLocation: chart.less ? "start" : "end", axisLine: line, axisLabel: { ...text, formatter: (value) => show(value) },
          nameTextStyle: { color: theme.ink, fontSize: 12, fontWeight: "bold" }, ...narrowed(real, { scale: true }) },
      ],
      series: [{ type: "parallel", data, lineStyle: { width: 1.2 }, ...area, progressive: 0, smooth: 0.15, z: 2,
        emphasis: { lineStyle: { width: 3, opacity: 1 } } }],
    } };
  }

  return { theme, show, base, below, beside, room, inside, legend, narrowed, xy, gantt, lineage, parallel };
})();
