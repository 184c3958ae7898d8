"""How many dead nodes each level of acknowledgement bears, and that an acknowledgement means so many copies on disks."""

from __future__ import annotations

import os

import pytest

from client.errors import NotEnoughReplicas, ObjectNotFound
from client.record import ACK_LEVELS, acks_needed
from tests.support.cluster import CHUNK_BYTES, LiveCluster


def test_an_acknowledged_write_has_its_copies_and_a_level_that_cannot_be_had_is_refused(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "3")
    first, second, third = cluster.node_ids
    with cluster.client(first) as client:
        for num_dead, victim in enumerate((None, third, second)):
            if victim is not None:
                cluster.kill(victim)
            for ack in ACK_LEVELS:
                key, needed = f"{num_dead} dead, {ack}", acks_needed(3, ack=ack)
                if needed > 3 - num_dead:
                    with pytest.raises(NotEnoughReplicas, match=f"of {needed} copies are durable"):
                        client.put("data", key, os.urandom(2 * CHUNK_BYTES), ack=ack)
                    with pytest.raises(ObjectNotFound):
                        client.stat("data", key)
                    continue
                info = client.put("data", key, os.urandom(2 * CHUNK_BYTES), ack=ack)
                for ref in info.record.content.refs:
                    assert len(cluster.sound_copies(ref)) >= needed, key
