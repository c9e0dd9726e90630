"""All evaluations of a run in a form that a page can hold: columns of numbers, packed.

What the table, the detail of an evaluation and the charts that are drawn from every evaluation
read (``static/rows.js``). A column is the smallest integers that hold it, or floats; all bytes of
a run are compressed together, which browsers can undo by themselves. 100,000 evaluations of 40
columns take about 2 MB on the page.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graph_meta import drawing, prefix
from transfer_nas import logs, runs
from transfer_nas.errors import InputError
from transfer_nas.report.best import Architectures
from transfer_nas.report.charts import Floats, Integers
from transfer_nas.report.genes import explained
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

LIMIT = 300_000
"""Evaluations that the tables of one page hold at most, all runs together."""

_CURVES = (1_500, 500)  # learning curves that come along: of the best, and of failures
_LAYERS = 5_000  # evaluations up to which the layers of each come along
_DECIMALS = {"timestamp": 3}  # of measures, by how their names begin
_FORMATS = {"bytes": "bytes", "seconds": "seconds", "timestamp": "seconds"}

_FIRST = ("m:error", "m:parameters", "m:train_seconds", "m:layers", "m:layers_transferred")
_LABELS = {
    "timestamp_submit": "asked after",
    "timestamp_start": "began after",
    "timestamp_end": "ended after",
    "timestamp_gather": "result after",
}
_GENES = 4  # that are on show at first: those that tell most

Rows = dict[str, Any]
"""JSON values: ``count``, ``columns`` (what each is and where it lies) and ``data``."""


@dataclass
class _Packing:
    """Columns and their bytes, one after the other."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)

    def add(self, name: str, array: NDArray[Any], **about: Any) -> None:
        """Append a column; its bytes lie by their place in the numbers, which compresses better."""
        size = array.dtype.itemsize
        planes = array.view(np.uint8).reshape(-1, size).T if len(array) else array
        self.pieces.append(np.ascontiguousarray(planes).tobytes())
        self.columns.append({"name": name, "type": array.dtype.str[1:], **about})
        self.columns[-1]["length"] = len(array)

    def add_numbers(self, name: str, values: Floats, decimals: int | None, **about: Any) -> None:
        """Append numbers; `decimals`: how many are worth keeping, None for as many as floats."""
        good = np.isfinite(values)
        scale = 10.0 ** (decimals or 0)
        with np.errstate(over="ignore"):
            steps = np.round(values[good] * scale)
        low = float(steps.min(initial=0.0))
        whole = decimals is not None or bool(np.array_equal(steps, values[good]))
        if whole and low > -(2**31) and float(steps.max(initial=0.0)) - low < 2**31:
            codes = np.zeros(len(values), np.int64)  # 0 where there is none
            codes[good] = steps - low + 1
            self._add_integers(name, codes, base=low - 1, scale=scale, **about)
            return
        with np.errstate(over="ignore", under="ignore"):
            short = values.astype("<f4")
        fits = np.isfinite(short[good]).all() and ((short[good] == 0) == (values[good] == 0)).all()
        self.add(name, short if fits else values.astype("<f8"), **about)

    def add_rounded(self, name: str, values: Floats, **about: Any) -> None:
        """Append numbers of which four digits are worth keeping."""
        with np.errstate(over="ignore", under="ignore"):
            bits = values.astype("<f4").view(np.uint32)
        # 13 bits behind the point: the lowest byte is always zero.
        bits = np.where(np.isfinite(values), (bits + 0x200) & 0xFFFFFC00, bits)
        self.add(name, bits.astype(np.uint32).view("<f4"), digits=4, **about)

    def add_codes(self, name: str, codes: Integers, texts: Sequence[str], **about: Any) -> None:
        """Append texts by their positions among `texts`, -1 for none."""
        self._add_integers(name, codes + 1, base=-1, scale=1, texts=list(texts), **about)

    def _add_integers(self, name: str, codes: Integers, **about: Any) -> None:
        steps = np.diff(codes, prepend=0)
        if np.abs(steps).sum() < codes.sum() / 4:  # such as ids and moments: they rise
            zigzag = np.where(steps < 0, -2 * steps - 1, 2 * steps)
            if zigzag.max(initial=0) < 2**32:
                codes, about = zigzag, {**about, "steps": True}
        largest = int(codes.max(initial=0))
        kind = "<u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4"
        self.add(name, codes.astype(kind), **about)


def rows(run: Run, architectures: Architectures) -> Rows:
    """Return all evaluations of a run, packed.

    Columns carry their names in ``results.csv``, so that what the page exports is read like it.
    Beside them: ``curve:*`` and ``layer:*``, whose values lie end to end, as many for each
    evaluation as ``curve:count`` and ``layer:count`` say.
    """
    packing = _Packing()
    scale = Scale.of(run)
    first = {"job_id", "job_status", "objective", *_FIRST, *_leading_genes(run)}
    packing.add_numbers("job_id", run.numbers("job_id"), 0, label="job", format="integer")
    _add_texts(packing, "job_status", run.texts("job_status"), label="status")
    if run.has("error"):
        _add_measure(packing, run, "error")  # beside what it explains
    packing.add_numbers(
        "objective",
        scale.natural(run.objective),
        None,
        label=scale.name,
        format="number",
        # What the file calls so is maximised: of a metric that is not, it is the negative.
        export="objective" if scale.sign > 0 else scale.name,
    )
    for name in run.table.column_names:
        measure = name.removeprefix("m:")
        if name == "m:ancestor":
            above = np.where(run.ancestor == -1, np.nan, run.ancestor).astype(np.float64)
            packing.add_numbers(name, above, 0, label="ancestor", format="job")
        elif name.startswith("m:") and name != "m:error" and run.has(measure):
            _add_measure(packing, run, measure)
    for column, (gene, values) in enumerate(run.genes.items()):
        texts = [str(value) for value in values]
        packing.add_codes(f"p:{gene}", run.genomes[:, column], texts, label=gene, kind="gene")
    for about in packing.columns:
        if about["name"] in first:
            about["first"] = True
    _add_curves(packing, run)
    _add_layers(packing, run, architectures)
    return {
        "count": len(run),
        "columns": packing.columns,
        "better": scale.better,
        "interval": scale.rows if scale.is_share else 0,
        "name": run.path.name,
        "data": base64.b64encode(zlib.compress(b"".join(packing.pieces), 7)).decode(),
    }


def _leading_genes(run: Run) -> list[str]:
    share = explained(run)
    names = list(run.genes)
    return [f"p:{names[i]}" for i in np.argsort(-share, kind="stable")[:_GENES].tolist()]


def _add_measure(packing: _Packing, run: Run, measure: str) -> None:
    name, label = f"m:{measure}", _LABELS.get(measure, measure.replace("_", " "))
    value = run.declared.get(measure)
    own = value is not None and value in run.own_values
    if value is None or value.kind is str:
        _add_texts(packing, name, run.texts(name), label=value.label if value and own else label)
        return
    if own:
        shape = "integer" if value.kind is int else "number"
        numbers = run.measure(measure)
        packing.add_numbers(name, numbers, None, label=value.label, format=shape, first=True)
        return
    first, last = measure.partition("_")[0], measure.rpartition("_")[2]
    shape = _FORMATS.get(first, _FORMATS.get(last, "integer"))
    if last == "seconds":
        packing.add_rounded(name, run.measure(measure), label=label, format=shape)
        return
    decimals = _DECIMALS.get(first)
    if measure == "parent":
        shape = "job"
    packing.add_numbers(name, run.measure(measure), decimals, label=label, format=shape)


def _add_texts(packing: _Packing, name: str, texts: NDArray[np.object_], **about: Any) -> None:
    encoded = pc.dictionary_encode(pa.array(texts, pa.string(), from_pandas=True))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    packing.add_codes(name, codes, encoded.dictionary.to_pylist(), **about)


def _add_curves(packing: _Packing, run: Run) -> None:
    """Append what the ranks logged of each epoch, of the best evaluations and of failures."""
    bad = np.flatnonzero(~run.done)
    shown = np.concatenate([run.ranking[: _CURVES[0]], bad[: _CURVES[1]]])
    wanted = set(run.job[shown].tolist())
    try:
        curves = logs.epochs(runs.open_files(run.path, "logs/rank-*.jsonl"), wanted)
    except InputError:
        return  # logs are for looking at: without them, the rest of the page is no worse
    keys = sorted({key for epochs in curves.values() for epoch in epochs for key in epoch})
    counts = np.zeros(len(run), np.int64)
    flat: dict[str, list[float]] = {key: [] for key in keys}
    for row, job in enumerate(run.job.tolist()):
        epochs = curves.get(job, ())
        counts[row] = len(epochs)
        for epoch in epochs:
            for key in keys:
                flat[key].append(epoch.get(key, np.nan))
    if counts.any():
        packing.add_numbers("curve:count", counts.astype(np.float64), 0)
        for key in keys:
            packing.add_numbers(f"curve:{key}", np.array(flat[key], np.float64), None)


def _add_layers(packing: _Packing, run: Run, architectures: Architectures) -> None:
    """Append the layers of each evaluation, and which of them it inherited."""
    if architectures.space is None or len(run) > _LAYERS:
        return
    texts: dict[str, int] = {}
    counts, specs, taken = np.zeros(len(run), np.int64), [], []
    for row in range(len(run)):
        graph = architectures.graph(run, row)
        if graph is None:
            continue
        above = run.row_of.get(int(run.ancestor[row]))
        ancestor = None if above is None else architectures.graph(run, above)
        shared = frozenset() if ancestor is None else frozenset(prefix(ancestor, graph))
        counts[row] = len(graph)
        for name, layer in zip(graph.names, graph.layers, strict=True):
            text = f"{layer.spec.class_name.rpartition('>')[2]} {drawing.summary(layer.spec)}"
            specs.append(texts.setdefault(text.strip(), len(texts)))
            taken.append(name in shared)
    packing.add_numbers("layer:count", counts.astype(np.float64), 0)
    packing.add_codes("layer:text", np.array(specs, np.int64), list(texts))
    packing.add_numbers("layer:inherited", np.array(taken, np.float64), 0)
