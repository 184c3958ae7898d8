"""How far nodes are from this process: what a read crosses to reach them."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from client.placement import Layouts

__all__ = ["MACHINE", "NETWORK", "ZONES", "Nearness"]

MACHINE, NETWORK, ZONES = range(3)
"""Distances: a node on this machine, one in this zone (or it is not known in which this process is), any other."""


class Nearness:
    """The distance of each node of the current layouts.

    Parameters
    ----------
    zone, machine : str
        Of this process, as the layout names those of nodes. By default the host name, and the zone of the nodes on that host;
        if there are none, all other machines are alike.
    """

    def __init__(self, *, zone: str, machine: str) -> None:
        self._zone = zone
        self._machine = machine or socket.gethostname()
        self._known: tuple[Layouts, Mapping[str, int]] | None = None

    def of(self, layouts: Layouts) -> Mapping[str, int]:
        """The distance of each node in `layouts`."""
        known = self._known
        if known is None or known[0] is not layouts:
            nodes = [node for layout in (*layouts.older, layouts.current) for node in layout.nodes]
            zone = self._zone or next((node.zone for node in nodes if node.host == self._machine), "")
            distances = {node.id: ZONES if zone and node.zone != zone else NETWORK for node in nodes}
            distances |= {node.id: MACHINE for node in nodes if node.host == self._machine}
            self._known = known = layouts, distances
        return known[1]
