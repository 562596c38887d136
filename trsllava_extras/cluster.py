"""Work in threads; and on other processes or machines, by Dask (``trsllava.schedulers``).

A scheduler is named by a string: ``local[4]`` (four worker processes on this machine) or
``tcp://host:8786`` (a Dask cluster that is running).
The same function computes a piece everywhere, so the results are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from trsllava_utils.files import InputError, MissingError

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 20  # seconds to wait for a scheduler

_clients: dict[str, Client] = {}


# Read at import: when Dask starts workers, it sets this to 1 here as well.
_OMP_NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS") or 0)


def threads() -> int:
    """Number of threads to compute with: OMP_NUM_THREADS where it is set (Dask sets it to 1 for
    its workers), else the cores that this process may use."""
    import joblib

    return _OMP_NUM_THREADS or joblib.cpu_count()


def in_threads(function: Callable, pieces: Sequence) -> list:
    """``function(piece)`` of every piece, one thread for each core; BLAS adds none of its own."""
    n = min(threads(), len(pieces))
    if n < 2:
        return [function(piece) for piece in pieces]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, pieces))


def spread(
    function: Callable, pieces: Sequence, scheduler: str = "", shared: tuple = ()
) -> Iterator[tuple[int, Any]]:
    """``function(piece, *shared)`` for every piece.

    A piece whose worker dies is computed again by another worker, so running ``function`` twice
    must do no harm.

    Args:
        function: a function of a module, which the workers can import.
        pieces: small values that say what to do.
        scheduler: see the top of this module; empty: here, one after the other.
        shared: arguments that all pieces need; sent to each worker once.

    Yields:
        The number of a piece and its result, as they finish.

    Raises:
        InputError: no such scheduler, it is gone, or a piece killed several workers. Whatever
            else ``function`` raises comes through.
        MissingError: Dask is not installed.
    """
    if not scheduler:
        yield from enumerate(function(piece, *shared) for piece in pieces)
        return
    client = connect(scheduler)
    from distributed import KilledWorker, as_completed

    # A result of a task, unlike scattered data, is made again when the worker that held it dies.
    held = [client.submit(_same, value, pure=False) for value in shared]
    futures = {client.submit(function, p, *held, pure=False): n for n, p in enumerate(pieces)}
    try:
        for future in as_completed(futures, loop=client.loop):
            number = futures[future]
            yield number, future.result()
            future.release()
    except KilledWorker as error:
        raise InputError(
            f"piece {number + 1} of {len(pieces)}, or one waiting beside it, killed its worker "
            f"{error.allowed_failures + 1} times (out of memory? the worker's log says); what was "
            "finished is on disk: run again with more memory per worker, or with fewer workers"
        ) from error
    except CancelledError as error:
        raise InputError(
            f"the cluster {scheduler} is gone, or lost what it had computed; what was finished is "
            "on disk: run again"
        ) from error
    finally:
        client.cancel(list(futures))


def _same(value: Any) -> Any:
    return value


def connect(scheduler: str) -> Client:
    """The client of a cluster, kept until the process ends.

    Raises:
        InputError: not the name of a scheduler, or none answers there.
        MissingError: Dask is not installed.
    """
    if scheduler in _clients and _clients[scheduler].status == "running":
        return _clients[scheduler]
    local = re.fullmatch(r"local\[([1-9]\d*)\]", scheduler)
    if not local and not re.fullmatch(r"(tcp|tls|ws|wss)://\S+", scheduler):
        raise InputError(
            f"scheduler={scheduler!r}: give local[4] (processes on this machine), "
            "tcp://host:8786 (a Dask cluster), or nothing"
        )
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingError(
            f"scheduler={scheduler!r} needs Dask: pip install distributed"
        ) from error
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"})  # of shared
    try:
        where = scheduler
        if local:
            where = LocalCluster(
                n_workers=int(local[1]), threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
        _clients[scheduler] = Client(where, timeout=PATIENCE)
    except OSError as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler} ({str(error).splitlines()[0][:100]})"
        ) from error
    return _clients[scheduler]
