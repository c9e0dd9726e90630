"""Metrics of classes against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from transfer_nas.training.scores import score


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.booleans(), st.sampled_from([1, 8]))
def test_several_classes(seed: int, classes: int, weighted: bool, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.append(np.arange(classes), rng.integers(classes, size=40))
    p = rng.random((len(y), classes))
    if levels > 1:
        p = np.round(p * levels) / levels + 0.01  # many ties
    p = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    w = rng.uniform(0.1, 3, len(y)) if weighted else None
    decided = p.argmax(axis=1)
    one_hot = np.eye(classes)[y]
    sides = slice(1, 2) if classes == 2 else slice(None)
    average = "binary" if classes == 2 else "macro"
    expected = {
        "auc": np.mean(
            [
                metrics.roc_auc_score(one_hot[:, c], p[:, c], sample_weight=w)
                for c in range(classes)[sides]
            ]
        ),
        "auc_pr": np.mean(
            [
                metrics.average_precision_score(one_hot[:, c], p[:, c], sample_weight=w)
                for c in range(classes)[sides]
            ]
        ),
        "f1": metrics.f1_score(y, decided, average=average, sample_weight=w, zero_division=0),
        "mcc": metrics.matthews_corrcoef(y, decided, sample_weight=w),
    }
    for name, value in expected.items():
        for targets in (y, y[:, None], one_hot):
            assert score(name, targets, p, w) == pytest.approx(value, abs=1e-6), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_outputs_of_0_and_1(seed: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.vstack([np.zeros(outputs), np.ones(outputs), rng.integers(2, size=(30, outputs))])
    p = rng.random(y.shape).astype(np.float32)
    if outputs == 1:
        assert score("f1", y[:, 0], p) == score("f1", y, p)
    for name, function in {
        "auc": metrics.roc_auc_score,
        "auc_pr": metrics.average_precision_score,
        "f1": lambda true, found: metrics.f1_score(true, found > 0.5),
        "mcc": lambda true, found: metrics.matthews_corrcoef(true, found > 0.5),
    }.items():
        expected = np.mean([function(y[:, i], p[:, i]) for i in range(outputs)])
        assert score(name, y, p) == pytest.approx(expected, abs=1e-6), name


def test_rows_of_one_class_have_no_auc() -> None:
    assert np.isnan(score("auc", np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])))
    assert score("mcc", np.ones(4), np.full(4, 0.9)) == 0.0
