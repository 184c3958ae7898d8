"""Figures, each beside its peer and its limit in the same run: ``make bench SUITE=store`` or ``SUITE=loader``.

`servers` starts the peers, each as its own documentation recommends. Nothing here is part of what is installed.
"""

from __future__ import annotations
