/* What test_report_page.py asks of a page: each function returns what is wrong. */
({
// What is wider than its place has to say so.
withoutHint: () => [...document.querySelectorAll('main .scroll, main .across')]
    .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
    .filter(e => !(e.dataset.more && e.nextElementSibling?.matches('.sideways')))
    .map(e => e.outerHTML.slice(0, 90)),

// Texts need 4.5 to 1 against what is behind them, colours of charts 3 to 1 (WCAG 2.2, AA).
contrast: () => {
    const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) =>
        0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = text => text.match(/[\d.]+/g).map(Number);
    const ratio = (a, b) => {
        const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.5) return colour;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const e of document.querySelectorAll('main *, header *, footer *, dialog *')) {
        const skipped = '[data-chart], .curve, .unseen, input, option, datalist, :disabled';
        if (!e.checkVisibility() || e.closest(skipped)) continue;
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        const style = getComputedStyle(e);
        let back = behind(e);
        let ink = style.color;
        if (e.closest('svg')) {
            ink = style.fill;
            const box = e.closest('g').querySelector('rect');
            if (box) back = parse(getComputedStyle(box).fill);
        }
        const found = ratio(parse(ink), back);
        if (found < 4.5) bad.push(`${e.outerHTML.slice(0, 60)} ${found.toFixed(2)}`);
    }
    const root = getComputedStyle(document.documentElement);
    const hex = name =>
        root.getPropertyValue(name).trim().match(/\w\w/g).map(x => parseInt(x, 16));
    for (const name of ['first', 'second', 'third', 'fourth', 'fifth', 'accent', 'muted']) {
        const found = ratio(hex('--' + name), hex('--card'));
        if (found < 3) bad.push(`${name} ${found.toFixed(2)}`);
    }
    return bad;
},

// Texts of one drawing that overlap, or are cut off.
overlapping: () => [...document.querySelectorAll('.drawing svg')].flatMap(svg => {
    const whole = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')];
    const boxes = texts.map(text => text.getBoundingClientRect());
    const apart = (a, b) =>
        a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
    return texts.flatMap((text, i) => [
        ...(boxes[i].left < whole.left || boxes[i].right > whole.right ? [text.textContent] : []),
        ...texts.filter((_, j) => j > i && !apart(boxes[i], boxes[j])).map(t => t.textContent)]);
}),
})
