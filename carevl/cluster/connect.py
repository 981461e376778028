"""Joins the Ray cluster that the settings name, or starts a private one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.cluster.private import private_ray
from carevl.cluster.reach import check_address, end_without_node
from carevl.errors import MachineError
from carevl.models.device import REHEARSAL
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.tree import Cluster

_log = logging.getLogger(__name__)

_STARTS = 3
"""Times that a private Ray is started before it is given up."""
_TOO_SLOW = "timed out during startup"
"""Of what Ray raises where its agent is not there within a time of its own, as on a machine that is busy."""
_WORKER_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray hides the GPUs of a node from workers that reserve none only if told so, and asks the worker's environment.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
"""Environment variables of every worker, in private and in joined clusters."""

_DRIVER_ENVIRONMENT = {
    # Seconds without the head until Ray's core ends the process; its own limit is a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    # What Ray prints of lost nodes, in several paragraphs; the command says what is lost, and what to do.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # A thread that still asks Ray when a command ends would start another Ray, open to all of the machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Environment variables of this process, read when Ray is imported."""


def is_private(cluster: Cluster) -> bool:
    """Whether a Ray of this process's own is started: no address is set, and this is no submitted job."""
    return (cluster.address or os.environ.get("RAY_ADDRESS", "")).strip() in ("", "local")


def check_cluster(cluster: Cluster) -> None:
    """Ask the cluster that would be joined whether it is there; nothing where a private Ray is started.

    Raises:
        RunError, MachineError: as `ray_cluster`, within seconds.
    """
    if not is_private(cluster):
        _set_driver_environment()
        check_address(cluster.address or os.environ["RAY_ADDRESS"])


def _set_driver_environment() -> None:
    os.environ |= {name: value for name, value in _DRIVER_ENVIRONMENT.items() if name not in os.environ}


@contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[None]:
    """Hold a connection to Ray.

    Inside a submitted job, or with `address` set, an existing cluster is joined. Otherwise Ray starts on this machine,
    without a dashboard, listens on loopback, and lets nobody in who lacks the token that is drawn for it.

    Raises:
        RunError: the cluster wants another token, is no Ray, or does not start on this machine.
        MachineError: nobody answers at its address.
    """
    with private_ray() if is_private(cluster) else nullcontext() as directory, _connection(cluster, directory):
        yield


@contextmanager
def _connection(cluster: Cluster, directory: Path | None) -> Iterator[None]:
    """Hold a connection; errors as for `ray_cluster`.

    Args:
        directory: for the files of a private Ray, which is started; None: a cluster is joined.
    """
    _set_driver_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    check_cluster(cluster)
    rehearsal = {REHEARSAL: "1"} if cluster.rehearse else {}
    os.environ |= rehearsal
    address = cluster.address or os.environ.get("RAY_ADDRESS", "")
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM,) if is_main}
    runtime = {"env_vars": _WORKER_ENVIRONMENT | rehearsal}
    try:
        if directory is not None:
            _start(
                address="local",
                _temp_dir=str(directory),
                num_cpus=cluster.num_cpus,
                num_gpus=cluster.num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
                runtime_env=runtime,
                _node_ip_address="127.0.0.1",
            )
        else:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="warning", runtime_env=runtime)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if directory is not None:
            raise
        raise MachineError(f"cannot join the Ray cluster at {address}: {' '.join(str(error).split())}") from error
    finally:
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)
    try:
        with end_without_node():
            yield
    finally:
        ray.shutdown()
        if cluster.rehearse:
            os.environ.pop(REHEARSAL, None)


def _start(**arguments: Any) -> None:
    """Start Ray on this machine, once more where it is too slow.

    Raises:
        RunError: it is so every time.
    """
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(**arguments)
            return
        except Exception as error:  # Ray raises nothing more special
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if left:
                _log.warning("Ray does not start within its own limit, as this machine is busy; it is started again")
    raise RunError(
        f"Ray has not started on this machine in {_STARTS} tries; it is too busy, or has too little memory: end what "
        "else runs here, and give the same command again"
    )
