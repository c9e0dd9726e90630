"""Convolutional networks on series by macro specification: `CellCnn` with one axis."""

from __future__ import annotations

from graph_meta import layers
from transfer_nas.spaces.cell_cnn import Axes, CellCnn

_SERIES = Axes(
    1,
    256,
    layers.conv1d,
    layers.max_pooling1d,
    layers.average_pooling1d,
    {"average": layers.global_average_pooling1d(), "max": layers.global_max_pooling1d()},
)


class SeriesCnn(CellCnn):
    """`CellCnn` on one series (steps,) or (steps, channels) of at least 4 steps.

    The genes are the same, with 1-d layers. Cells are those that need nothing else: no depthwise
    convolutions. The stem halves series of 256 steps or more.
    """

    name = "series_cnn"

    _axes = _SERIES
    _all_cells = ("conv3", "conv5", "residual", "bottleneck", "inception")
    _expected = "one series (steps,) or (steps, channels) of at least 4 steps"

    @classmethod
    def example(cls) -> SeriesCnn:
        """Make this space for series of 40 numbers in ten classes; see `Space.example`."""
        return cls([(40,)], 10, "softmax")
