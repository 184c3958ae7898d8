"""Figures, each beside its peer and its limit in the same run: ``make bench SUITE=store`` or ``SUITE=loader``.

`measure` times and tabulates, `servers` starts the peers, `environment` installs them apart from the project. Peers run as their
own documentation recommends. Nothing here is part of what is installed.
"""

from __future__ import annotations
