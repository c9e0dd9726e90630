"""Combo: how a cell line grows under a pair of drugs (ECP-CANDLE Benchmarks, Pilot1/Combo).

Of the original, which CANDLE publishes, `read` takes four files: growth
(``ComboDrugGrowth_Nov2017.csv``), expressions of the cell lines
(``combined_rnaseq_data_lincs1000_source_scale`` or ``combined_rnaseq_data_lincs1000``), descriptors
of the drugs (``pan_drugs_dragon7_descriptors.tsv`` or ``ALMANAC_drug_descriptors_dragon7.txt``) and
the names of the cell lines (``NCI60_CELLNAME_to_Combo.txt`` and ``….new.txt``). Without them there
is a generated drug screen.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.applications._screen import Screen, divided
from transfer_nas.errors import ApplicationError

TRAIN_ROWS, VALID_ROWS = 2_000, 500
ORIGINAL_WIDTHS = (942, 3820)
FEATURES = 300
PUBLISHED = 8_582  # features of the original
_SEED = 2017  # the benchmark's


def read(directory: Path) -> Data:
    """Return the original: the least mean growth of each cell line under each pair of drugs.

    Features are imputed and scaled, growth is a fraction, a fifth of the rows validates: as in the
    benchmark, but for the order of its random numbers, and that the training rows say how to scale.
    """
    cells, expressions = _cells(directory)
    drugs, descriptors = _drugs(directory)
    growth = _growth(directory)
    known = growth["CELLNAME"].isin(cells) & growth["NSC1"].isin(drugs) & growth["NSC2"].isin(drugs)
    growth = growth[known].sample(frac=1.0, random_state=_SEED)
    if len(growth) < 5:
        raise ApplicationError(
            f"--data {directory}: expected growth of cell lines and drugs that the other files "
            f"describe, found {len(growth)} such rows"
        )
    y = growth["GROWTH"].to_numpy(np.float32)[:, None]
    train = len(y) - len(y) // 5
    cell = growth["CELLNAME"].map(cells).to_numpy()
    first, second = (growth[name].map(drugs).to_numpy() for name in ("NSC1", "NSC2"))
    expressions = _files.scaled(expressions, np.unique(cell[:train]))
    descriptors = _files.scaled(descriptors, np.unique((first[:train], second[:train])))
    x = (expressions[cell], descriptors[first], descriptors[second])
    return Data(
        tuple(array[:train] for array in x),
        y[:train],
        tuple(array[train:] for array in x),
        y[train:],
    )


def _growth(directory: Path) -> Any:
    path = _files.find(directory, "ComboDrugGrowth_Nov2017.csv")
    columns = ["CELLNAME", "NSC1", "CONC1", "NSC2", "CONC2", "PERCENTGROWTH", "VALID"]
    frame = _files.table(
        path, columns, dtype=dict.fromkeys(("NSC1", "NSC2", "CONC1", "CONC2"), "string")
    )
    frame = frame.loc[frame["VALID"] == "Y", columns[:-1]]
    # One drug alone is given with itself.
    frame["NSC2"] = frame["NSC2"].fillna(frame["NSC1"])
    frame["CONC2"] = frame["CONC2"].fillna(frame["CONC1"])
    frame["CELLNAME"] = frame["CELLNAME"].map(
        _names(directory, "NCI60_CELLNAME_to_Combo.txt", "Name")
    )
    try:
        frame["GROWTH"] = frame["PERCENTGROWTH"].astype(np.float32) / 100
    except ValueError as cause:
        raise ApplicationError(
            f"{path}: expected numbers in column 'PERCENTGROWTH': {cause}"
        ) from cause
    at_dose = frame.groupby(["CELLNAME", "NSC1", "NSC2", "CONC1", "CONC2"])["GROWTH"].mean()
    return at_dose.groupby(["CELLNAME", "NSC1", "NSC2"]).min().reset_index()


def _cells(directory: Path) -> tuple[dict[str, int], _files.Matrix]:
    """Return the row of each cell line by name, and their expressions."""
    path = _files.find(
        directory, "combined_rnaseq_data_lincs1000_source_scale", "combined_rnaseq_data_lincs1000"
    )
    frame = _files.table(path, ["Sample"], sep="\t")
    frame = frame[frame["Sample"].str.startswith("NCI60")]
    names = frame["Sample"].map(_names(directory, "NCI60_CELLNAME_to_Combo.new.txt", "NCI60.ID"))
    return _rows(names), _features(path, frame.drop(columns="Sample"))


def _drugs(directory: Path) -> tuple[dict[str, int], _files.Matrix]:
    """Return the row of each drug by its NSC number, and their descriptors."""
    path = _files.find(
        directory, "pan_drugs_dragon7_descriptors.tsv", "ALMANAC_drug_descriptors_dragon7.txt"
    )
    frame = _files.table(path, ["NAME"], sep="\t")
    names = frame["NAME"].astype("string").str.removeprefix("NSC.")
    return _rows(names), _features(path, frame.drop(columns="NAME").dropna(axis=1, how="all"))


def _names(directory: Path, file: str, key: str) -> dict[str, str]:
    frame = _files.table(_files.find(directory, file), [key, "CELLNAME"], sep="\t")
    return dict(zip(frame[key], frame["CELLNAME"].str.replace(":", "."), strict=True))


def _rows(names: Any) -> dict[str, int]:
    return {name: row for row, name in enumerate(names) if isinstance(name, str)}


def _features(path: Path, frame: Any) -> _files.Matrix:
    try:
        return np.asarray(frame.to_numpy(np.float32))
    except ValueError as cause:
        raise ApplicationError(f"{path}: expected numbers but in its first column: {cause}") from (
            cause
        )


def generate(features: int = FEATURES) -> Data:
    """Return a made-up screen: expressions, descriptors of two drugs, and growth from 1 to -1."""
    rng = np.random.default_rng(8_582)
    expressions, descriptors = _widths(features)
    screen = Screen(rng)
    rows = TRAIN_ROWS + VALID_ROWS
    cells, first = screen.draw(rows)
    _, second = screen.draw(rows)
    hit = screen.effect(cells, first) + screen.effect(cells, second)
    growth = -np.tanh(hit) + rng.normal(scale=0.1, size=rows)
    cell, drug = screen.cell_features(expressions), screen.drug_features(descriptors)
    x = (cell[cells], drug[first], drug[second])
    y = growth.astype(np.float32)[:, None]
    return Data(
        tuple(array[:TRAIN_ROWS] for array in x),
        y[:TRAIN_ROWS],
        tuple(array[TRAIN_ROWS:] for array in x),
        y[TRAIN_ROWS:],
    )


def _widths(features: int) -> tuple[int, int]:
    cell, drug = divided(features, (ORIGINAL_WIDTHS[0], 2 * ORIGINAL_WIDTHS[1]))
    return cell, max(2, drug // 2)


def _shapes(features: int) -> list[tuple[int]]:
    cell, drug = _widths(features)
    return [(cell,), (drug,), (drug,)]


application = Application(
    name="combo-synthetic",
    load=generate,
    read=read,
    generate=generate,
    input_shapes=_shapes(FEATURES),
    output_units=1,
    loss="mean_squared_error",
    metric="r2_score",
    epochs=10,
    batch_size=64,
    default_space="combo",
)

published = dataclasses.replace(
    application,
    name="combo-published-synthetic",
    load=functools.partial(generate, PUBLISHED),
    input_shapes=_shapes(PUBLISHED),
    metrics=("mean_absolute_error",),
    batch_size=32,
)
"""With what ``combo_default_model.txt`` and ``combo_baseline_keras2.py`` say."""
