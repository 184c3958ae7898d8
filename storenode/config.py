"""The node's configuration: read once, validated at start, every bound named.

Each setting may be given as ``FOREBAY_<NAME>``; times are seconds, sizes bytes. Without a secret nobody is asked for a token,
so a node that others could reach over the network starts only with one, or if the operator says that this is meant.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from client.errors import Misconfigured
from storenode.engine import EngineConfig, named_faults

__all__ = ["NodeConfig", "load_node_config"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class NodeConfig(EngineConfig):
    """Settings of one storage node."""

    # Identity and place
    data_dir: Path = Field(description="Chunks, quarantine and the node's identity; one node owns it")
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(7070, ge=0, le=65_535, description="Port to listen on; 0 takes a free one")
    advertise: str = Field("", description="URLs at which others reach this node, comma separated; by default host and port")
    insecure: bool = Field(False, description="Serve addresses that other machines reach without a secret: to everybody")
    zone: str = Field("zone-1", min_length=1, description="The wider failure domain")
    machine: str = Field("", description="The narrower failure domain; by default the machine's host name")

    # Who may do what
    secret_file: Path | None = Field(
        None, description="The cluster's secret, the same for all nodes; requests need tokens then"
    )
    token_leeway_s: float = Field(30.0, ge=0, le=3600, description="How long after its end a token is taken: clocks differ")
    node_token_s: float = Field(12 * 3600.0, ge=60, description="Life of nodes' own tokens; clocks may differ by half of it")
    max_known_tokens: int = Field(1024, ge=1, le=65_536, description="Tokens whose signature is not looked at again")

    shutdown_timeout_s: float = Field(10.0, gt=0, description="How long a stop waits for requests under way")

    # Disk
    reserve_bytes: int = Field(1 * GIB, ge=0, description="Free space below which the node is read-only")
    max_chunk_bytes: int = Field(64 * MIB, ge=64 * KIB, le=1 * GIB, description="Largest chunk that is accepted")
    max_disk_threads: int = Field(8, ge=1, le=256, description="Threads that read and write chunk files")
    max_open_chunks: int = Field(1024, ge=1, le=65_536, description="Small chunks that are kept open after they were read")
    max_disk_queue: int = Field(256, ge=1, le=65_536, description="Disk calls under way or waiting; more are refused")
    max_batch_threads: int = Field(2, ge=1, le=64, description="Groups of small chunks written at once; 256 files each")
    max_batch_queue: int = Field(64, ge=1, le=65_536, description="Batches of chunks under way or waiting; more are refused")

    # Requests
    max_connections: int = Field(1024, ge=8, le=65_536, description="Open at once; idle ones make room, else more are refused")
    max_reads: int = Field(512, ge=1, le=65_536, description="Chunks, or parts of them, sent at once; more are refused")
    max_batch_reads: int = Field(32, ge=1, le=4096, description="Batches of chunks sent at once, 1 MiB of each in memory")
    max_document_bytes: int = Field(64 * MIB, ge=4 * MIB, description="Bodies of JSON held at once, all requests together")
    stall_timeout_s: float = Field(60.0, gt=0, description="Longest time in which a client sends, takes or asks nothing")

    # Chunks passed to processes on this host, as descriptors
    max_colocated_connections: int = Field(256, ge=1, le=4096, description="Processes' connections; more are refused")
    colocated_idle_s: float = Field(60.0, gt=0, description="After so long without a request such a connection is closed")

    # Chunks on their way in
    max_body_bytes: int = Field(256 * MIB, ge=64 * KIB, description="Chunk bodies held at once, all requests together")
    max_kept_body_bytes: int = Field(128 * MIB, ge=0, description="Buffers of chunk bodies that are kept to be used again")
    max_tee_threads: int = Field(16, ge=1, le=256, description="Threads that forward chunks to other nodes")
    max_tees_per_node: int = Field(8, ge=1, le=256, description="Of them at one other node, which may be hanging")
    max_tee_queue: int = Field(256, ge=1, le=65_536, description="Forwards under way or waiting; more are refused")
    tee_timeout_s: float = Field(5.0, gt=0, description="After this long a forward counts as failed")

    # Objects by name
    max_object_bytes: int = Field(5 * 1024 * GIB, ge=1, description="Largest object by plain HTTP")
    max_object_requests: int = Field(16, ge=1, le=1024, description="PUT and GET of objects served at once; more are refused")
    max_gateway_threads: int = Field(16, ge=1, le=256, description="Threads that run uploads and verified reads")
    max_record_bytes: int = Field(32 * KIB, ge=16 * KIB, le=256 * KIB, description="Largest record that is accepted")
    max_metadata_threads: int = Field(8, ge=1, le=256, description="Threads that call the metadata engine")
    max_metadata_queue: int = Field(1024, ge=1, le=65_536, description="Metadata calls under way or waiting")
    max_watches: int = Field(32, ge=1, le=1024, description="Watches that wait at once; each has a thread")
    max_watch_s: float = Field(60.0, gt=0, description="Longest time that one watch waits")
    write_marker_ttl_s: float = Field(
        300.0, gt=0, description="Shortest life of a write's marker; must exceed any client's deadline"
    )

    # Membership
    bootstrap_nodes: int = Field(0, ge=0, le=10_000, description="A cluster that has no layout begins with so many; 0: never")
    start_timeout_s: float = Field(60.0, gt=0, description="How long a start outlasts a metadata engine that does not answer")
    out_after_s: float = Field(0.0, ge=0, description="A node that is down for so long is drained; 0: never")
    coordinator_period_s: float = Field(2.0, gt=0, description="Between two rounds of what one node does for the cluster")
    lease_ttl_s: float = Field(10.0, gt=0, description="How long a silent node counts as up")

    # Background work
    repair_grace_s: float = Field(2.0, ge=0, description="How long a new object's last replica may take before it is fetched")
    repair_base_s: float = Field(0.5, gt=0, description="First pause before a repair that failed is tried again")
    repair_max_s: float = Field(30.0, gt=0, description="Longest such pause")
    max_repair_threads: int = Field(4, ge=1, le=64, description="Missing chunks fetched at once, or groups of small ones")
    max_pending_repairs: int = Field(10_000, ge=16, le=1_000_000, description="Objects, and chunks, that wait for repair")
    follow_wait_s: float = Field(0.5, gt=0, description="Longest wait for changes; how late a new layout is noticed")
    rebalance_rate_bytes_per_s: int = Field(
        128 * MIB, ge=1, description="How fast a node fetches and re-hashes what a new layout gives it"
    )
    max_kept_jobs: int = Field(32, ge=1, le=1000, description="Ended jobs of a kind that are remembered of this node")
    gc_interval_s: float = Field(3600.0, ge=0, description="Time between rounds of garbage collection; 0: only when asked for")
    gc_rate_chunks_per_s: float = Field(1000.0, gt=0, description="How fast garbage is removed")
    gc_retry_s: float = Field(30.0, gt=0, description="Pause before a sweep that failed is tried again")
    max_gc_chunks: int = Field(
        4_000_000, ge=1, description="Chunks that one look at all records is for; 9 bytes of memory each"
    )
    scrub_interval_s: float = Field(7 * 24 * 3600.0, ge=0, description="A node scrubs itself so often; 0: only when asked")
    scrub_rate_bytes_per_s: int = Field(64 * MIB, ge=1, description="Reading speed of the scrub")

    @model_validator(mode="after")
    def _bounds_fit(self) -> NodeConfig:
        if self.max_body_bytes < 2 * self.max_chunk_bytes:
            # Half of it is for bodies that are forwarded, and one chunk must fit into that half.
            raise ValueError(
                f"max_body_bytes must hold two chunks of max_chunk_bytes ({self.max_chunk_bytes}), found {self.max_body_bytes}"
            )
        return self

    @model_validator(mode="after")
    def _only_loopback_without_secrets(self) -> NodeConfig:
        if self.secret_file is None and not self.insecure and not _is_loopback(self.host):
            raise Misconfigured(
                f"host {self.host!r} can be reached from other machines, and without a secret everybody there may do "
                "everything. Name the cluster's secret by FOREBAY_SECRET_FILE (`forebay secret create PATH` makes one), listen "
                "on 127.0.0.1, or give --insecure (FOREBAY_INSECURE=true) if the whole network is trusted"
            )
        return self


def load_node_config(**settings: Any) -> NodeConfig:
    """The configuration from `settings`, and for what they leave out from the environment.

    Raises
    ------
    Misconfigured
        Names each wrong or missing setting, the variable that gives it, and what was found.
    """
    with named_faults("the node's configuration"):
        return NodeConfig(**settings)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
