"""What is known of a run: versions as the programs themselves say them, the machine, and how Forebay was set up."""

from __future__ import annotations

from pathlib import Path

from benchmarks.machine import run_facts, said
from benchmarks.store.servers import install_weed, nginx_binary

__all__ = ["facts"]

_NO_NGINX = "missing, so the limit of a GET is left out; on Debian: apt-get install nginx-light"


def facts(work: Path) -> dict[str, str]:
    """Name to value; `work` is where the servers keep their data."""
    nginx = nginx_binary()
    return {
        **run_facts("benchmarks.store", work),
        "set up": "3 nodes, backend sqlite, consistency strong, 3 replicas, ack quorum, fsync, clients verify checksums",
        "SeaweedFS": said(str(install_weed()), "version") + "; 3 volume servers, replication 002, fsync=true, maxMB=8",
        "nginx": said(nginx, "-v") + "; sendfile, 1 worker" if nginx else _NO_NGINX,
    }
