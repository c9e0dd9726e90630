"""Applications on the files of the original data sets, written here as their authors write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from transfer_nas import applications
from transfer_nas.applications import as_tuple
from transfer_nas.errors import ApplicationError, SpaceError

rng = np.random.default_rng(11)


def write_nt3(directory: Path) -> None:
    labels = np.arange(9)[:, None] % 2
    values = np.hstack([labels, rng.random((9, 40)) * 5])
    np.savetxt(directory / "nt_train2.csv", values, fmt="%.4f", delimiter=",")


def write_uno(directory: Path) -> None:
    """Tables in pieces, as the benchmark appends them batch by batch."""
    with pd.HDFStore(
        directory / "top_21_auc_1fold.uno.h5", "w", complevel=9, complib="blosc:lz4"
    ) as store:
        for part, rows in (("train", 12), ("val", 5)):
            for n, width in enumerate((1, 20, 30)):
                for piece in np.array_split(rng.random((rows, width)).astype("f4"), 2):
                    frame = pd.DataFrame(piece, columns=[""] * width)
                    store.append(f"x_{part}_{n}", frame, format="table")
            target = pd.DataFrame(
                {"Sample": ["cell"] * rows, "Drug1": ["drug"] * rows, "AUC": rng.random(rows)}
            )
            store.append(f"y_{part}", target, format="table")
        store.put("model", pd.DataFrame(), track_times=False)


def write_attn(directory: Path) -> None:
    with pd.HDFStore(directory / "top_21_1fold_001.h5", "w") as store:
        for part, rows in (("train", 12), ("val", 5), ("test", 5)):
            for n, width in enumerate((20, 30)):
                store.put(
                    f"x_{part}_{n}", pd.DataFrame(rng.random((rows, width))), track_times=False
                )
            store.put(f"y_{part}", pd.DataFrame({"AUC": np.arange(rows) % 2}), track_times=False)


def write_combo(directory: Path) -> None:
    def write(name: str, frame: pd.DataFrame, sep: str = "\t") -> None:
        frame.to_csv(directory / name, sep=sep, index=False, na_rep="na")

    cells, drugs = ["NCI60.A498", "NCI60.LOX"], ["NSC.740", "NSC.3088", "NSC.755"]
    write(
        "NCI60_CELLNAME_to_Combo.txt",
        pd.DataFrame({"Name": ["A498", "LOX IMVI"], "CELLNAME": ["RE:A498", "ME:LOX"]}),
    )
    write(
        "NCI60_CELLNAME_to_Combo.new.txt",
        pd.DataFrame({"NCI60.ID": cells, "CELLNAME": ["RE:A498", "ME:LOX"]}),
    )
    expressions = pd.DataFrame(rng.random((3, 20))).add_prefix("gene")
    expressions.insert(0, "Sample", [*cells, "CCLE.OTHER"])
    write("combined_rnaseq_data_lincs1000", expressions)
    descriptors = pd.DataFrame(rng.random((3, 30))).add_prefix("d")
    descriptors.loc[1, "d3"] = np.nan
    descriptors["empty"] = np.nan
    descriptors.insert(0, "NAME", drugs)
    write("ALMANAC_drug_descriptors_dragon7.txt", descriptors)
    doses = (("1e-6", 80, "Y"), ("1e-6", 60, "Y"), ("1e-5", 20, "Y"), ("1e-4", -90, "N"))
    rows = [
        (cell, first, dose, second, dose if second else "", growth, valid, "")
        for cell in ("A498", "LOX IMVI")
        for first, second in (("740", "3088"), ("740", "755"), ("755", ""))
        for dose, growth, valid in doses
    ]
    columns = "CELLNAME NSC1 CONC1 NSC2 CONC2 PERCENTGROWTH VALID SCORE"
    growth = pd.DataFrame(rows, columns=columns.split())
    write("ComboDrugGrowth_Nov2017.csv", growth, sep=",")


def write_digits(directory: Path) -> None:
    pixels = rng.integers(17, size=(7, 64))
    values = np.hstack([pixels, rng.integers(10, size=(7, 1))])
    np.savetxt(directory / "optdigits.tra", values, fmt="%d", delimiter=",")


def write_california(directory: Path) -> None:
    values = rng.integers(1, 9, size=(16, 9)) * [-20, 5, 4, 300, 60, 200, 50, 1, 40_000]
    np.savetxt(directory / "cal_housing.data", values, fmt="%.6f", delimiter=",")


WRITERS = {
    "nt3": write_nt3,
    "uno": write_uno,
    "attn": write_attn,
    "combo": write_combo,
    "digits": write_digits,
    "california": write_california,
}


@pytest.mark.parametrize(
    ("name", "shapes", "rows"),
    [
        ("nt3", [(40,)], (7, 2)),
        ("uno", [(1,), (20,), (30,)], (12, 5)),
        ("attn", [(50,)], (12, 5)),
        ("combo", [(20,), (30,), (30,)], (5, 1)),
        ("digits", [(8, 8)], (6, 1)),
        ("california", [(8,)], (12, 4)),
    ],
)
def test_original_files_are_read(
    tmp_path: Path, name: str, shapes: list[tuple[int, ...]], rows: tuple[int, int]
) -> None:
    WRITERS[name](tmp_path)
    found = applications.resolve(name, str(tmp_path))
    assert found.name == name and not found.synthetic
    assert [tuple(shape) for shape in found.input_shapes] == shapes
    assert (len(found.data.y_train), len(found.data.y_valid)) == rows
    for array in (*as_tuple(found.data.x_train), *as_tuple(found.data.x_valid)):
        assert array.dtype == np.float32 and np.isfinite(array).all()
    assert found.namespace == applications.resolve(name, str(tmp_path)).namespace
    graph = found.space().graph(found.space().sample(np.random.default_rng(0)))
    assert graph.parameters > 0


@pytest.mark.parametrize("name", ["nt3", "california", "combo"])
def test_only_training_rows_say_how_to_scale(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    data = applications.resolve(name, str(tmp_path)).data
    x = as_tuple(data.x_train)
    if name == "nt3":
        assert np.abs(x[0]).max(axis=0) == pytest.approx(1)
        assert np.abs(data.x_valid).max() > 1
    elif name == "california":
        assert x[0].mean(axis=0) == pytest.approx(0, abs=1e-5)
        assert np.asarray(data.y_train).mean() == pytest.approx(0, abs=1e-5)
    else:  # cells and drugs are scaled once each, however many rows they are in
        for each in (x[0], np.concatenate(x[1:])):
            assert np.unique(each, axis=0).mean(axis=0) == pytest.approx(0, abs=1e-4)


def test_growth_is_the_least_mean_over_doses_of_valid_measurements(tmp_path: Path) -> None:
    write_combo(tmp_path)
    data = applications.resolve("combo", str(tmp_path)).data
    y = np.concatenate([np.asarray(data.y_train), np.asarray(data.y_valid)])
    # 80 and 60 at one dose, 20 at the other, -90 is not valid.
    assert np.allclose(y, 0.2)
    # One drug alone is given twice.
    first, second = (np.concatenate([data.x_train[n], data.x_valid[n]]) for n in (1, 2))
    assert sum(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) == 2


def damage(directory: Path, file: str, change: Callable[[str], str]) -> None:
    path = directory / file
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("nt3", "nt_train2.csv", lambda text: text + "1,2,3\n",
         r"nt_train2.csv: expected 41 numbers a line: .*Expected 41 columns, got 3"),
        ("nt3", "nt_train2.csv", lambda text: "0.5" + text[6:],
         r"nt_train2.csv, line 1: expected a label 0 or 1 in column 1, found 0.5"),
        ("nt3", "nt_train2.csv", lambda text: "gene" + text[6:],
         r"nt_train2.csv: expected 41 numbers a line: In CSV column #0.*'gene'"),
        ("nt3", "nt_train2.csv", lambda text: "", "line 1: expected at least one column, found 0"),
        ("digits", "optdigits.tra", lambda text: text.replace(",", ";"),
         "optdigits.tra, line 1: expected 65 columns, found 1"),
        ("combo", "ComboDrugGrowth_Nov2017.csv", lambda text: text.replace("NSC2", "DRUG2", 1),
         r"ComboDrugGrowth_Nov2017.csv: expected a column 'NSC2', found CELLNAME, NSC1"),
        ("combo", "NCI60_CELLNAME_to_Combo.txt",
         lambda text: text.replace("A498", "X").replace("LOX", ""),
         "expected growth of cell lines and drugs that the other files describe, found 0"),
        ("california", "cal_housing.data", lambda text: text[text.index(",") + 1 :],
         "cal_housing.data, line 1: expected 9 columns, found 8"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_file(
    tmp_path: Path, name: str, file: str, change: Callable[[str], str], message: str
) -> None:
    WRITERS[name](tmp_path)
    damage(tmp_path, file, change)
    with pytest.raises(ApplicationError, match=message) as caught:
        applications.resolve(name, str(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_says_what_is_wrong_with_an_hdf5_file(tmp_path: Path) -> None:
    path = tmp_path / "top_21_1fold_001.h5"
    path.write_text("not HDF5")
    with pytest.raises(ApplicationError, match="not an HDF5 file"):
        applications.resolve("attn", str(tmp_path))
    write_attn(tmp_path)
    with pd.HDFStore(path, "a") as store:
        store.remove("x_val_1")
    with pytest.raises(ApplicationError, match=r"expected a table 'x_val_1', found x_"):
        applications.resolve("attn", str(tmp_path))
    write_attn(tmp_path)
    with pd.HDFStore(path, "a") as store:
        store.put("y_train", pd.DataFrame({"AUC": [0, 1], "k": [1, 2]}), track_times=False)
    with pytest.raises(ApplicationError, match="expected one column of numbers in table 'y_tr"):
        applications.resolve("attn", str(tmp_path))
    with pd.HDFStore(path, "a") as store:
        store.put("y_train", pd.DataFrame({"AUC": np.linspace(0.25, 1, 12)}), track_times=False)
    with pytest.raises(ApplicationError, match=r"expected 0 or 1 in y_train, found 0\.25"):
        applications.resolve("attn", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("nt3", "{}/none", "no such directory"),
        ("nt3", "{}", r"expected a file nt_train2.csv there"),
        ("combo", "{}", "combined_rnaseq_data_lincs1000_source_scale or combined_rnaseq_data_linc"),
        ("breast_cancer", "{}", "application breast_cancer reads no files"),
        ("digits", "synthetic:64", "there is no synthetic data for it"),
        ("nt3", "synthetic:all", "expected a number of features from 16 to 9999999, found 'all'"),
        ("nt3", "synthetic:3", "expected a number of features from 16 to 9999999, found '3'"),
    ],
)
def test_says_what_is_wrong_with_a_source(
    tmp_path: Path, name: str, source: str, message: str
) -> None:
    with pytest.raises(ApplicationError, match=message):
        applications.resolve(name, source.format(tmp_path))


def test_california_says_that_it_needs_files() -> None:
    with pytest.raises(ApplicationError, match="needs --data DIR with the original's cal_housing"):
        _ = applications.resolve("california").data


@pytest.mark.parametrize("name", ["nt3", "uno", "attn", "combo"])
def test_synthetic_data_says_so_and_has_the_size_that_is_asked(name: str) -> None:
    default, larger = applications.resolve(name), applications.resolve(name, "synthetic:1000")
    for found in (default, larger):
        assert found.synthetic and found.namespace.startswith(f"{name}-synthetic-")
        assert found.data.digest == found.load().digest
    assert default.namespace != larger.namespace
    features = sum(np.prod(shape) for shape in larger.input_shapes)
    assert features == pytest.approx(1000, abs=5)


def test_the_uno_benchmark_has_its_own_shapes() -> None:
    from transfer_nas.applications import combo, uno
    from transfer_nas.spaces import Combo, Uno

    assert uno._shapes(15_580) == list(Uno.example().input_shapes)
    assert combo._shapes(8_582) == list(Combo.example().input_shapes)


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("digits", "combo", "application digits: space combo: expected the features of a cell"),
        ("breast_cancer", "cell_cnn", "application breast_cancer: space cell_cnn: expected"),
        ("uno", "nt3", "application uno-synthetic: space nt3: expected one input of shape"),
    ],
)
def test_a_space_that_does_not_fit_says_so(name: str, space: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        applications.resolve(name).space(space)
