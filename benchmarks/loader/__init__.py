"""The loader beside its peers and its limits, in one run: ``make bench SUITE=loader``.

`sets` are the samples, `sides` the loaders behind one interface, each driven by `turns` in a process of its own, in the
environment that it is installed in (`peers`). `cells` says what is measured and what is wanted, `rounds` has the sides take
turns, `report` makes tables and a chart of it.
"""

from __future__ import annotations
