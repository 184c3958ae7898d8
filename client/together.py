"""Many chunks of nodes on this host: which ones go into one request, and the few threads that make the requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

from client.in_flight import in_order
from client.local_wire import MAX_TOGETHER
from client.parallel import usable_cores

__all__ = ["make_requests", "requests_for"]

_LEAST_TOGETHER = 2  # A request for less costs more than another thread saves.
_MAX_THREADS = 8  # Each may hold a descriptor for each chunk of its request.


def make_requests(
    chosen: Mapping[str, Sequence[int]], make: Callable[[str, Sequence[int]], None], *, executor: Executor
) -> None:
    """Call `make` for each request, which names a node and some of the chunks that are `chosen` for it, by number."""
    num_threads = min(usable_cores() + 1, _MAX_THREADS)  # One waits for a node while the others read.
    requests = requests_for(chosen, num_threads=num_threads)
    left = iter(requests)

    def work(_: int) -> None:
        for node_id, numbers in left:
            make(node_id, numbers)

    if len(requests) == 1:
        work(0)  # The common case costs no thread.
    else:
        deque(in_order(executor, work, range(min(len(requests), num_threads)), max_in_flight=num_threads), maxlen=0)


def requests_for(chosen: Mapping[str, Sequence[int]], *, num_threads: int) -> list[tuple[str, Sequence[int]]]:
    """Numbers of chunks, chosen for each node, by request: as many as one may have, but some for each thread.

    The shortest ones come first, so that there is soon something to do.
    """
    share = -(-sum(map(len, chosen.values())) // num_threads)
    step = min(max(_LEAST_TOGETHER, share), MAX_TOGETHER)
    requests = [(node_id, part[at : at + step]) for node_id, part in chosen.items() for at in range(0, len(part), step)]
    return sorted(requests, key=lambda request: len(request[1]))
