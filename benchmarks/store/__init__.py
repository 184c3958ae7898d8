"""The store beside its limits and its peers, in one run: ``make bench SUITE=store``.

`cells` says what is measured and `bars` what is wanted; a cell is added there and nowhere else. For each cell, `sides` starts
the stores it needs (`servers`: the peers' processes), and `rounds` lets them take turns. A turn is a fleet of client processes
(`clients`) that repeat one of the `operations` over connections of one of the `stores` (`http_stores`: the peers'), while
`usage` reads what that costs. `results` makes figures of it, and `report` and `chart` show them. `mixed` is the long run that
watches memory, and `facts` what is known of machine and versions.

Each cell has servers and a disk directory of its own, so that its figures do not depend on which cells ran before it, and what
it wrote goes away with it.
"""

from __future__ import annotations
