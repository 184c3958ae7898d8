"""Figures, each beside its peer and its limit in the same run: ``make bench SUITE=store`` or ``SUITE=loader``.

`store` is a package, `loader` one module that times in one process with `measure`. Nothing here is part of what is installed.
"""

from __future__ import annotations
