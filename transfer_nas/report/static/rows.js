"use strict";
/* All evaluations of a run: unpacks them (report/rows.py) and shows them as a table to sort, filter
   and export, of which only the rows in sight are in the document. */
globalThis.rows = (() => {
  const HEIGHT = 34; // of a row, in pixels; page.css says the same
  const SPARE = 12; // rows beyond those in sight
  let packed = {};
  const loaded = new Map(); // part -> promise of its data
  const widgets = new Map(); // element -> its table

  async function inflate(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const kinds = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

  /* The numbers of a column as they lie in the bytes: first all first bytes, then all second ones. */
  function unpack(about, bytes, start) {
    const size = kinds[about.type].BYTES_PER_ELEMENT;
    const n = about.length;
    const whole = new Uint8Array(n * size);
    for (let p = 0; p < size; p += 1)
      for (let i = 0; i < n; i += 1) whole[i * size + p] = bytes[start + p * n + i];
    return new kinds[about.type](whole.buffer);
  }

  class Column {
    constructor(about, bytes, start) {
      Object.assign(this, { ...about, bytes, start, made: null });
      if (this.texts) this.format = "text";
      this.export ??= this.name;
    }

    /* Numbers, NaN where there is none; of texts, their positions. */
    get values() {
      if (this.made) return this.made;
      const raw = unpack(this, this.bytes, this.start);
      this.bytes = null;
      if (this.base === undefined) return (this.made = Float64Array.from(raw));
      const values = new Float64Array(raw.length);
      let code = 0;
      for (let i = 0; i < raw.length; i += 1) {
        if (this.steps) code += raw[i] % 2 ? -(raw[i] + 1) / 2 : raw[i] / 2;
        else code = raw[i];
        values[i] = code === 0 ? NaN : (code + this.base) / this.scale;
      }
      return (this.made = values);
    }

    /* What orders: numbers, texts by their places in the alphabet (genes: among their values). */
    get ranks() {
      if (!this.texts || this.kind === "gene") return this.values;
      const order = this.texts.map((_, i) => i).sort((a, b) => this.texts[a].localeCompare(this.texts[b]));
      const place = new Float64Array(order.length);
      order.forEach((text, i) => { place[text] = i; });
      return this.values.map((value) => (Number.isNaN(value) ? NaN : place[value]));
    }

    raw(i) {
      const value = this.values[i];
      if (Number.isNaN(value)) return null;
      if (this.texts) return this.texts[value];
      return this.type === "f4" ? Number(value.toPrecision(this.digits ?? 7)) : value;
    }

    text(i) {
      const value = this.raw(i);
      if (value === null) return "–";
      if (this.texts) return value;
      if (this.format === "job") return value < 0 ? "another run" : `job ${value}`;
      if (this.format === "integer") return value.toLocaleString("en");
      if (this.format === "seconds") return `${drawings.show(value)} s`;
      return this.format === "number" ? String(Number(value.toPrecision(5))) : drawings.show(value, this.format);
    }
  }

  /* The data of a part of the page: `columns` by name, `shown` those of one value an evaluation. */
  function load(part) {
    if (!loaded.has(part)) loaded.set(part, unpacked(packed[part]));
    return loaded.get(part);
  }

  async function unpacked(about) {
    if (!about) throw new Error("no evaluations");
    const bytes = await inflate(about.data);
    const columns = new Map();
    let start = 0;
    for (const one of about.columns) {
      columns.set(one.name, new Column(one, bytes, start));
      start += one.length * kinds[one.type].BYTES_PER_ELEMENT;
    }
    const shown = [...columns.values()].filter((column) => column.label !== undefined);
    return { ...about, data: null, columns, shown, job: columns.get("job_id"), rowOf: null };
  }

  function rowOf(data, job) {
    data.rowOf ??= new Map(Array.from(data.job.values, (value, i) => [value, i]));
    return data.rowOf.get(job);
  }

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const tests = {
    number: { "≥": (a, b) => a >= b, "≤": (a, b) => a <= b, "=": (a, b) => a === b, "≠": (a, b) => a !== b },
    text: {
      contains: (a, b) => a.toLowerCase().includes(b.toLowerCase()),
      is: (a, b) => a === b,
      "is not": (a, b) => a !== b,
    },
  };

  function matches(column, { test, value }) {
    const values = column.values;
    if (!column.texts) {
      const bound = Number(value);
      return (i) => tests.number[test](values[i], bound);
    }
    const good = column.texts.map((text) => tests.text[test](text, value));
    const none = test === "is not";
    return (i) => (Number.isNaN(values[i]) ? none : good[values[i]]);
  }

  class Table {
    constructor(root) {
      this.root = root;
      this.part = root.dataset.rows;
      this.conditions = [];
      this.sort = { name: "job_id", up: true };
      this.current = 0;
      this.wanted = null; // names of the columns on show
      this.build();
      this.refresh();
    }

    build() {
      this.columnChoice = element("select", { ariaLabel: "Column to filter by" });
      this.testChoice = element("select", { ariaLabel: "How to compare" });
      this.known = element("datalist", { id: `${this.part}-known` });
      this.value = element("input", { ariaLabel: "Value to compare with", autocomplete: "off", list: this.known.id });
      const form = element("form", { className: "filter" }, this.columnChoice, this.testChoice, this.value,
        this.known, element("button", { type: "submit", textContent: "Add filter" }));
      this.picked = element("fieldset", { className: "picked" }, element("legend", { className: "unseen", textContent: "Columns" }));
      const columns = element("details", { className: "columns" }, element("summary", { textContent: "Columns" }), this.picked);
      const save = element("button", { type: "button", className: "export", textContent: "Export CSV" });
      this.chips = element("ul", { className: "chips", ariaLabel: "Filters" });
      this.status = element("p", { className: "count", role: "status" });
      this.head = element("tr");
      this.body = element("tbody");
      this.table = element("table", {}, element("thead", {}, this.head), this.body);
      this.view = element("div", { className: "scroll grid", role: "region", ariaLabel: "All evaluations" }, this.table);
      this.root.replaceChildren(element("div", { className: "tools" }, form, columns, save), this.chips, this.status, this.view);
      this.columnChoice.addEventListener("change", () => this.offer());
      form.addEventListener("submit", (event) => { event.preventDefault(); this.add(); });
      save.addEventListener("click", () => this.save());
      this.view.addEventListener("scroll", () => this.draw());
      globalThis.rows.onTable?.(this.view);
      new ResizeObserver(() => this.draw()).observe(this.view);
      this.body.addEventListener("keydown", (event) => this.walk(event));
      this.body.addEventListener("click", (event) => {
        const line = event.target.closest("tr[data-at]");
        if (line) this.open(Number(line.dataset.at));
      });
    }

    /* Takes the data as it is now; what the reader has chosen stays. */
    async refresh() {
      this.data = await load(this.part);
      const { shown } = this.data;
      const before = this.columnChoice.value;
      this.columnChoice.replaceChildren(...shown.map((column) => element("option", { value: column.name, textContent: column.label })));
      this.columnChoice.value = this.data.columns.has(before) ? before : "objective";
      this.offer();
      this.wanted ??= new Set(shown.filter((column) => column.first).map((column) => column.name));
      this.picked.replaceChildren(this.picked.firstChild, ...shown.map((column) => {
        const box = element("input", { type: "checkbox", checked: this.wanted.has(column.name) });
        box.addEventListener("change", () => {
          if (box.checked) this.wanted.add(column.name); else this.wanted.delete(column.name);
          this.arrange();
        });
        return element("label", {}, box, ` ${column.label}`);
      }));
      this.select();
      this.root.removeAttribute("aria-busy");
      this.root.dataset.drawn = "rows";
    }

    offer() {
      const column = this.data.columns.get(this.columnChoice.value);
      const kind = column.texts ? "text" : "number";
      this.testChoice.replaceChildren(...Object.keys(tests[kind]).map((name) => element("option", { value: name, textContent: name })));
      if (column.kind === "gene" || column.name === "job_status") this.testChoice.value = "is";
      this.known.replaceChildren(...(column.texts ?? []).slice(0, 100).map((text) => element("option", { value: text })));
      this.value.placeholder = column.texts ? "a text" : "a number";
      this.value.value = "";
      this.value.setCustomValidity("");
    }

    add() {
      const column = this.data.columns.get(this.columnChoice.value);
      const text = this.value.value.trim();
      const odd = text === "" || (!column.texts && Number.isNaN(Number(text)));
      this.value.setCustomValidity(odd ? `Expected ${this.value.placeholder}.` : "");
      if (odd) { this.value.reportValidity(); this.value.setCustomValidity(""); return; }
      this.conditions.push({ name: column.name, test: this.testChoice.value, value: text });
      this.value.value = "";
      this.current = 0;
      this.view.scrollTop = 0;
      this.select();
    }

    /* Finds the rows that pass every filter. */
    select() {
      this.chips.replaceChildren(...this.conditions.map((condition, at) => {
        const text = `${this.data.columns.get(condition.name)?.label} ${condition.test} ${condition.value}`;
        const button = element("button", { type: "button", textContent: `${text} ✕`, ariaLabel: `Remove the filter ${text}` });
        button.addEventListener("click", () => { this.conditions.splice(at, 1); this.select(); this.value.focus(); });
        return element("li", {}, button);
      }));
      const passes = this.conditions.filter(({ name }) => this.data.columns.has(name))
        .map((condition) => matches(this.data.columns.get(condition.name), condition));
      const kept = [];
      for (let i = 0; i < this.data.count; i += 1) if (passes.every((test) => test(i))) kept.push(i);
      this.order = Uint32Array.from(kept);
      const all = this.data.count.toLocaleString("en");
      this.status.textContent = passes.length ? `${kept.length.toLocaleString("en")} of ${all} evaluations` : `${all} evaluation${this.data.count === 1 ? "" : "s"}`;
      this.arrange();
    }

    /* Sorts; what has no value comes last either way. */
    arrange() {
      const column = this.data.columns.get(this.sort.name) ?? this.data.job;
      const values = column.ranks;
      const way = this.sort.up ? 1 : -1;
      this.order.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (x === y) return a - b;
        if (Number.isNaN(x)) return Number.isNaN(y) ? a - b : 1;
        if (Number.isNaN(y)) return -1;
        return x < y ? -way : way;
      });
      this.on = this.data.shown.filter((one) => this.wanted.has(one.name) || one.name === "job_id");
      this.head.replaceChildren(...this.on.map((one) => {
        const chosen = one.name === this.sort.name;
        const mark = chosen ? (this.sort.up ? " ▲" : " ▼") : "";
        const button = element("button", { type: "button", textContent: one.label + mark });
        button.addEventListener("click", () => {
          // Numbers begin with the largest, but for the objective whose least is best.
          const first = Boolean(one.texts) || one.name === "job_id" || (one.name === "objective" && this.data.better.startsWith("lower"));
          this.sort = { name: one.name, up: chosen ? !this.sort.up : first };
          this.current = 0;
          this.view.scrollTop = 0;
          this.arrange();
          this.head.querySelectorAll("button")[this.on.indexOf(one)].focus();
        });
        return element("th", { scope: "col", className: one.texts ? "" : "n", ariaSort: chosen ? (this.sort.up ? "ascending" : "descending") : "none" }, button);
      }));
      this.table.setAttribute("aria-rowcount", this.order.length + 1);
      this.draw(true);
    }

    /* Puts the rows in sight into the document, and space for the others. */
    draw(anew = false) {
      if (!this.order) return;
      const focused = this.body.contains(document.activeElement);
      const first = Math.max(0, Math.floor(this.view.scrollTop / HEIGHT) - SPARE);
      const last = Math.min(this.order.length, first + Math.ceil(this.view.clientHeight / HEIGHT) + 2 * SPARE);
      if (!anew && first === this.first && last === this.last) return;
      Object.assign(this, { first, last });
      this.current = Math.min(this.current, Math.max(0, this.order.length - 1));
      const inside = this.current >= first && this.current < last;
      const lines = [space(first, this.on.length)];
      for (let at = first; at < last; at += 1) lines.push(this.line(at, inside ? this.current : first));
      lines.push(space(this.order.length - last, this.on.length));
      this.body.replaceChildren(...lines);
      if (focused && inside) this.body.querySelector("button[tabindex='0']")?.focus({ preventScroll: true });
    }

    line(at, reachable) {
      const row = this.order[at];
      const failed = this.data.columns.get("job_status").text(row) !== "DONE";
      const made = element("tr", { className: failed ? "failed" : "", "data-at": at, "aria-rowindex": at + 2 });
      for (const column of this.on) {
        const text = column.name === "job_id" ? "" : column.text(row);
        const cell = element("td", { className: column.texts ? "" : "n", textContent: text });
        if (text.length > 24) cell.title = text;
        if (column.name === "job_id")
          cell.append(element("button", { type: "button", className: "link", tabIndex: at === reachable ? 0 : -1, ariaLabel: `Details of job ${column.raw(row)}`, textContent: column.raw(row) }));
        made.append(cell);
      }
      return made;
    }

    walk(event) {
      const page = Math.max(1, Math.floor(this.view.clientHeight / HEIGHT) - 2);
      const last = this.order.length - 1;
      const here = Number(event.target.closest("tr")?.dataset.at ?? this.current);
      const to = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: last }[event.key];
      if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.current = Math.min(Math.max(to, 0), last);
      const top = this.current * HEIGHT;
      const room = this.view.clientHeight - 2 * HEIGHT; // the head stays in sight
      if (top < this.view.scrollTop) this.view.scrollTop = top;
      else if (top > this.view.scrollTop + room) this.view.scrollTop = top - room;
      this.draw(true);
      this.body.querySelector("button[tabindex='0']")?.focus({ preventScroll: true });
    }

    open(at) {
      this.current = at;
      detail.open(this.part, this.data, this.order[at], this.order);
    }

    save() {
      const cell = (value) => {
        const text = value === null ? "" : String(value);
        return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
      };
      const lines = [this.data.shown.map((column) => cell(column.export)).join(",")];
      for (const row of this.order) lines.push(this.data.shown.map((column) => cell(column.raw(row))).join(","));
      const address = URL.createObjectURL(new Blob([lines.join("\n"), "\n"], { type: "text/csv" }));
      element("a", { href: address, download: `${this.data.name}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    }
  }

  function space(count, columns) {
    const cell = element("td", { colSpan: columns });
    cell.style.height = `${count * HEIGHT}px`;
    return element("tr", { className: "space", ariaHidden: "true" }, cell);
  }

  return {
    element, load, rowOf,
    /* New data of all parts; tables that are there show it. */
    take(fresh) {
      packed = fresh;
      loaded.clear();
      for (const table of widgets.values()) if (table.part in packed && table.root.isConnected) table.refresh();
    },
    has: (part) => part in packed,
    show(root) { if (!widgets.has(root)) widgets.set(root, new Table(root)); },
    known: () => [...widgets.keys()],
    forget(root) { widgets.delete(root); },
  };
})();
