"""Figures, each beside its peer and its limit in the same run: ``make bench SUITE=store`` or ``SUITE=loader``.

`store` and `loader` are packages; the other suites are modules, some of which time in one process with `measure`. Nothing here
is part of what is installed. What suites measure against lives in an environment of its own (`peers`).
"""

from __future__ import annotations
