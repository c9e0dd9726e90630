"""Layer graphs as SVG, drawn from top to bottom, without any library."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from graph_meta.graph import LayerGraph, LayerSpec

_WIDTH, _HEIGHT = 132, 36  # of a layer's box, in pixels
_GAP_X, _GAP_Y = 18, 30
_MARGIN, _TITLE = 24, 56
_TITLE_LETTER, _NOTE_LETTER = 8.8, 6.6  # pixels of a letter at most, in bold 15 and in plain 12
_SWEEPS = 8  # of ordering each row by its neighbours

_STYLE = """
text { font-family: Helvetica, Arial, sans-serif; text-anchor: middle; }
.title { font-size: 15px; font-weight: bold; }
.note { font-size: 12px; fill: #555; }
.class { font-size: 12px; }
.detail { font-size: 10px; fill: #555; }
rect { fill: #fff; stroke: #888; }
.shared rect { fill: #cfe8cf; stroke: #2e7d32; stroke-width: 1.5; }
path { fill: none; stroke: #aaa; }
path.shared { stroke: #2e7d32; stroke-width: 2; }
"""


@dataclass(frozen=True)
class _Picture:
    """SVG elements and their extent in pixels."""

    elements: list[str]
    width: float
    height: float


def draw_pair(
    a: LayerGraph, b: LayerGraph, titles: tuple[str, str], shared: Collection[str]
) -> str:
    """Return an SVG document of two graphs side by side; see `draw`."""
    return draw([(a, titles[0]), (b, titles[1])], shared)


def draw(
    graphs: Sequence[tuple[LayerGraph, str]], shared: Collection[str], *, style: bool = True
) -> str:
    """Return an SVG document of graphs side by side.

    Parameters
    ----------
    graphs
        What to draw, each with what stands above it.
    shared
        Stable names of the layers to mark in all.
    style
        False: without colours and fonts, for a page that has its own for the classes ``title``,
        ``note``, ``class``, ``detail`` and ``shared``.
    """
    shared = frozenset(shared)
    pictures = [_draw(graph, title, shared) for graph, title in graphs]
    width = sum(picture.width + 2 * _MARGIN for picture in pictures) - 2 * _MARGIN
    height = max(picture.height for picture in pictures)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">'
    ]
    if style:
        parts += [
            f"<style>{_STYLE}</style>",
            f'<rect width="{width:g}" height="{height:g}" style="stroke: none"/>',
        ]
    x = 0.0
    for picture in pictures:
        parts += [f'<g transform="translate({x:g} 0)">', *picture.elements, "</g>"]
        x += picture.width + 2 * _MARGIN
    return "\n".join([*parts, "</svg>"]) + "\n"


def summary(spec: LayerSpec) -> str:
    """Return what tells this layer from others of its class, in a few characters.

    >>> summary(LayerSpec("Dense", {"units": 8, "activation": "relu", "use_bias": True}))
    '8 relu'
    """
    config = spec.config
    words = [
        str(config[key])
        for key in ("units", "filters", "num_heads", "rate", "output_dim")
        if key in config
    ]
    words += [
        "x".join(map(str, config[key]))
        for key in ("kernel_size", "pool_size", "target_shape")
        if isinstance(config.get(key), list)
    ]
    if isinstance(config.get("batch_shape"), list):
        words.append("x".join("?" if n is None else str(n) for n in config["batch_shape"][1:]))
    if isinstance(config.get("activation"), str) and config["activation"] != "linear":
        words.append(config["activation"])
    return " ".join(words)


def _draw(graph: LayerGraph, title: str, shared: frozenset[str]) -> _Picture:
    layout = _Layout(graph)
    columns = max(x + _share(is_box) for x, is_box in zip(layout.x, layout.is_box, strict=True))
    rows = max(layout.rows) + 1
    common = sum(name in shared for name in graph.names)
    note = f"{common} of {len(graph)} layers shared, {graph.parameters:,} parameters"
    # A chain of layers is narrower than what stands above it.
    texts = max(_TITLE_LETTER * len(title), _NOTE_LETTER * len(note))
    width = max(columns * (_WIDTH + _GAP_X) - _GAP_X, texts) + 2 * _MARGIN
    height = _TITLE + rows * (_HEIGHT + _GAP_Y) - _GAP_Y + _MARGIN
    left = (width - columns * (_WIDTH + _GAP_X) + _GAP_X) / 2
    elements = [
        f'<text class="title" x="{width / 2:g}" y="20">{escape(title)}</text>',
        f'<text class="note" x="{width / 2:g}" y="38">{note}</text>',
    ]
    corners = [
        (left + x * (_WIDTH + _GAP_X), _TITLE + y * (_HEIGHT + _GAP_Y))
        for x, y in zip(layout.x, layout.rows, strict=True)
    ]
    for route in layout.routes:
        # A layer in the prefix stands on layers in the prefix.
        marked = ' class="shared"' if graph.names[route[-1]] in shared else ""
        steps = []
        for source, target in pairwise(route):
            x0, y0 = corners[source]
            x1, y1 = corners[target]
            x0 += (_WIDTH if layout.is_box[source] else _GAP_X) / 2
            x1 += (_WIDTH if layout.is_box[target] else _GAP_X) / 2
            y0 += _HEIGHT
            middle = (y0 + y1) / 2
            steps.append(f"{x0:g} {y0:g} C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}")
        # Between two rows a curve, down a row a line.
        elements.append(f'<path{marked} d="M{" L".join(steps)}"/>')
    for name, layer, (x, y) in zip(graph.names, graph.layers, corners, strict=False):
        detail = summary(layer.spec)
        marked = ' class="shared"' if name in shared else ""
        class_name = layer.spec.class_name.rpartition(">")[2]
        middle = x + _WIDTH / 2
        elements += [
            f"<g{marked}><title>{escape(name)}</title>",
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>',
            f'<text class="class" x="{middle:g}" y="{y + (15 if detail else 22):g}">'
            f"{escape(_short(class_name))}</text>",
        ]
        if detail:
            elements.append(
                f'<text class="detail" x="{middle:g}" y="{y + 28:g}">'
                f"{escape(_short(detail))}</text>"
            )
        elements.append("</g>")
    return _Picture(elements, width, height)


def _short(text: str, length: int = 21) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _share(is_box: bool) -> float:
    """Return how much of a column something takes: a layer all of it, an edge that passes less."""
    return 1.0 if is_box else 2 * _GAP_X / (_WIDTH + _GAP_X)


class _Layout:
    """Where the layers of a graph stand, and by which way its edges go.

    Rows are depths, so that every edge leads down; an edge over several rows passes through a
    narrow place in each of them. Within a row, all stand as close to their neighbours above and
    below as they can: the rows are sorted by the mean position of those, down and up in turn (the
    barycentre method of Sugiyama, Tagawa and Toda, 1981).

    Attributes
    ----------
    x, rows, is_box
        Column, row and kind of each place. The first ones are the layers, in their order.
    routes
        For each edge the places that it passes, from layer to layer.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.rows: list[int] = []
        edges: dict[tuple[int, int], None] = {}  # without repetitions, in order
        for position, layer in enumerate(graph.layers):
            inputs = [edge.layer for call in layer.calls for edge in call.inputs]
            self.rows.append(max((self.rows[source] + 1 for source in inputs), default=0))
            edges.update(dict.fromkeys((source, position) for source in inputs))
        self.is_box = [True] * len(graph)
        self.routes = [self._route(source, target) for source, target in edges]
        self.x = [0.0] * len(self.rows)
        self._arrange()

    def _route(self, source: int, target: int) -> list[int]:
        between = range(self.rows[source] + 1, self.rows[target])
        first = len(self.rows)
        self.rows.extend(between)
        self.is_box.extend([False] * len(between))
        return [source, *range(first, len(self.rows)), target]

    def _arrange(self) -> None:
        above: list[list[int]] = [[] for _ in self.rows]
        below: list[list[int]] = [[] for _ in self.rows]
        for route in self.routes:
            for source, target in pairwise(route):
                above[target].append(source)
                below[source].append(target)
        rows: list[list[int]] = [[] for _ in range(max(self.rows) + 1)]
        for place, row in enumerate(self.rows):
            rows[row].append(place)
        widths = [sum(_share(self.is_box[place]) for place in row) for row in rows]

        def spread(row: Sequence[int], width: float) -> None:
            x = (max(widths) - width) / 2
            for place in row:
                self.x[place] = x
                x += _share(self.is_box[place])

        def centre(place: int) -> float:
            return self.x[place] + _share(self.is_box[place]) / 2

        for places, width in zip(rows, widths, strict=True):
            spread(places, width)
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            neighbours = above if down else below
            for i in range(len(rows)) if down else reversed(range(len(rows))):
                means = {
                    place: sum(map(centre, near)) / len(near) if near else centre(place)
                    for place in rows[i]
                    for near in [neighbours[place]]
                }
                rows[i].sort(key=lambda place: (means[place], self.x[place]))
                spread(rows[i], widths[i])
