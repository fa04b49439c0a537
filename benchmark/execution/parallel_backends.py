"""Parallel backends of joblib: this process, processes of this machine (loky), or a Dask or Ray cluster."""

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed, parallel_config

from ..core import shutdown
from ..core.errors import BenchError, did_you_mean
from ..planning.config import RunConfig
from .gpu_slots import allowed_gpus, worker_count
from .worker import begin_worker, signals_blocked

PACKAGES = {"loky": "joblib", "dask": "distributed", "ray": "ray"}  # backend -> package it needs
CONNECT_SECONDS = 30  # until a cluster that was named must answer
WORKER_SECONDS = 600  # until a cluster must have a first worker: jobs of a queue start late
log = logging.getLogger(__name__)


@dataclass
class ParallelBackend:
    """Starts calls in workers, which stay from one `start` to the next with torch imported.

    at_once: calls at a time, 0 for as many as a cluster takes. in_process: in this process, one after the other.
    threads: of torch in each worker, 0 for the worker's own setting. where: in words, for people.
    """

    backend: str
    at_once: int
    in_process: bool = False
    threads: int = 0
    where: str = "this process"
    options: Mapping[str, Any] = field(default_factory=dict)
    _parallel: Any = None

    def start(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], at_once: int) -> Iterator[Any]:
        """Results of `function(*call)` for each call, as they come; at most `at_once` at a time (0: no limit).

        Raises whatever the backend raises when a worker dies; results that came before stand, and the next `start` has
        new workers.
        """
        parallel = self._parallel or self._open()
        parallel.pre_dispatch = at_once or "all"
        complete = False
        try:
            yield from parallel(delayed(function)(*call) for call in calls if shutdown.requested() <= 0)
            complete = True
        finally:
            if not complete:
                self.close()

    def _open(self) -> Any:
        if self.in_process:
            return Parallel(n_jobs=1, return_as="generator")
        # Ray's joblib backend hands results over at the end only. With one process joblib would run the calls here.
        order: Any = "list" if self.backend == "ray" else "generator_unordered"
        with parallel_config(backend=self.backend, **self.options):
            parallel = Parallel(n_jobs=max(2, self.at_once), return_as=order, batch_size=1)  # pyright: ignore[reportArgumentType]
        self._parallel = parallel.__enter__()
        return self._parallel

    def close(self) -> None:
        """Ends the workers."""
        parallel, self._parallel = self._parallel, None
        if parallel is not None:
            parallel.__exit__(None, None, None)


def check_backend(run: RunConfig) -> None:
    """Raises BenchError for an unknown backend or one whose package is missing."""
    if run.backend not in PACKAGES:
        raise BenchError(
            f"--backend {run.backend} is not one of {', '.join(PACKAGES)}.{did_you_mean(run.backend, PACKAGES)}"
        )
    if importlib.util.find_spec(PACKAGES[run.backend]) is None:
        raise BenchError(
            f"--backend {run.backend} needs a package that is not here: pip install 'wsolbench[{run.backend}]'."
        )


@contextlib.contextmanager
def open_backend(run: RunConfig) -> Iterator[ParallelBackend]:
    """The backend that `--backend`, `--scheduler` and `--jobs` ask for, open while the block lasts.

    Stages share torch's global generator, so they run in processes of their own, never in threads beside each other.
    Raises BenchError for a cluster that cannot be reached.
    """
    check_backend(run)
    at_once = worker_count(run)
    if run.backend == "loky":
        if at_once == 1:
            yield ParallelBackend("loky", 1, True)
            return
        begin = {"initializer": begin_worker, "initargs": (os.getpid(),)}
        backend = ParallelBackend("loky", at_once, False, threads_per_worker(at_once), "this machine", begin)
        with signals_blocked(), contextlib.closing(backend):
            yield backend
    else:
        with {"dask": _dask, "ray": _ray}[run.backend](run, at_once) as backend, contextlib.closing(backend):
            yield backend


def threads_per_worker(at_once: int) -> int:
    """Threads for each of some workers of this machine."""
    return max(1, cpu_count() // max(1, at_once))


@contextlib.contextmanager
def _dask(run: RunConfig, at_once: int) -> Iterator[ParallelBackend]:
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)  # it logs every worker that comes and goes
    with contextlib.ExitStack() as opened:
        if run.scheduler:
            client = opened.enter_context(_connected(run.scheduler, lambda where: _dask_client(Client, where)))
            log.info("waiting for the first worker of %s", run.scheduler)
            # a task makes a cluster that adapts ask for workers; its queue may take hours, so there is no limit
            client.submit(abs, -1, pure=False).result()
            yield ParallelBackend("dask", run.jobs, where=f"Dask at {run.scheduler}", options=_dask_options(client))
            return
        # Memory-mapped images would count against a limit on memory.
        settings: dict[str, Any] = {"dashboard_address": "", "memory_limit": 0, "host": "127.0.0.1"}
        with signals_blocked():
            cluster = opened.enter_context(LocalCluster(n_workers=at_once, threads_per_worker=1, **settings))
        client = opened.enter_context(Client(cluster, set_as_default=False))
        yield ParallelBackend(
            "dask", at_once, False, threads_per_worker(at_once), "Dask on this machine", _dask_options(client)
        )


def _dask_client(make: Any, where: str) -> Any:
    if where.endswith(".json") or Path(where).is_file():
        return make(scheduler_file=where, timeout=CONNECT_SECONDS, set_as_default=False)
    return make(where, timeout=CONNECT_SECONDS, set_as_default=False)


def _dask_options(client: Any) -> dict[str, Any]:
    return {"client": client, "wait_for_workers_timeout": WORKER_SECONDS}


@contextlib.contextmanager
def _ray(run: RunConfig, at_once: int) -> Iterator[ParallelBackend]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to outside
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    for name in ("ray", "ray.util.joblib.ray_backend", "ray.util.multiprocessing.pool"):
        logging.getLogger(name).setLevel(logging.ERROR)  # advice for other uses
    each = {"num_cpus": 1, **_ray_gpus(run)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if run.scheduler:
        with _connected(run.scheduler, lambda where: _ray_at(ray.init, where, quiet)):
            capacity = _ray_capacity(ray.cluster_resources(), each)
            at_once = min(run.jobs or capacity, capacity)
            yield ParallelBackend("ray", at_once, where=f"Ray at {run.scheduler}", options={"ray_remote_args": each})
        return
    ray.init(num_cpus=max(2, at_once), include_dashboard=False, **quiet)
    try:
        at_once = min(at_once, _ray_capacity(ray.cluster_resources(), each))
        yield ParallelBackend(
            "ray", at_once, False, threads_per_worker(at_once), "Ray on this machine", {"ray_remote_args": each}
        )
    finally:
        ray.shutdown()


def _ray_at(connect: Any, where: str, quiet: dict[str, Any]) -> Any:
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # Ray itself would ask a machine that does not answer for several minutes
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    return connect(address=where, **quiet)


def _ray_capacity(resources: Mapping[str, float], per_worker: Mapping[str, float]) -> int:
    """Workers a cluster has room for: Ray would wait for ever for one that finds none. Raises BenchError."""
    capacity = int(resources.get("CPU", 1))
    if share := per_worker.get("num_gpus", 0):
        capacity = min(capacity, int(resources.get("GPU", 0) / share))
    if capacity < 1:
        raise BenchError(
            f"The Ray cluster has no GPU for a stage ({dict(resources)}): start one with GPUs, or add --device cpu."
        )
    return capacity


def _ray_gpus(run: RunConfig) -> dict[str, float]:
    """The share of a GPU a Ray worker asks for; Ray hides all GPUs from workers that ask for none."""
    if run.device == "cpu" or not (run.scheduler or allowed_gpus(run.device)):
        return {}
    return {"num_gpus": run.devices if run.devices > 1 else 1 / (run.jobs_per_gpu or 1)}


@contextlib.contextmanager
def _connected(where: str, connect: Callable[[str], Any]) -> Iterator[Any]:
    """A connection to a cluster. Raises BenchError if it cannot be made."""
    try:
        connection = connect(where)
    except Exception as problem:  # each backend has its own errors for a cluster that is not there
        raise BenchError(
            f"--scheduler {where} cannot be reached ({type(problem).__name__}: {problem}). Give the address that the "
            "scheduler printed (tcp://host:8786, or ray's host:6379), or the path of its scheduler file."
        ) from problem
    with contextlib.ExitStack() as opened:
        if hasattr(connection, "__exit__"):
            opened.enter_context(connection)
        yield connection
