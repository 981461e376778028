"""Joins the Ray cluster that the settings name, or starts a private one on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from carevl.models.device import REHEARSAL
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.tree import Cluster

_WORKER_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray hides the GPUs of a node from workers that reserve none only if told so, and asks the worker's environment.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
"""Environment variables of every worker, in private and in joined clusters."""


def is_private(cluster: Cluster) -> bool:
    """Whether a Ray of this process's own is started: no address is set, and this is no submitted job."""
    return cluster.address is None and "RAY_ADDRESS" not in os.environ


@contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[None]:
    """Hold a connection to Ray.

    Inside a submitted job, or with `address` set, an existing cluster is joined. Otherwise Ray starts on this machine,
    without a dashboard, and lets nobody in who lacks the token that is drawn for it.

    Raises:
        RunError: the cluster cannot be reached, or wants another token.
    """
    private = is_private(cluster)
    if private:
        # Ray's control service listens beyond loopback whatever address it is given: only this process has its token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield
        return
    rehearsal = {REHEARSAL: "1"} if cluster.rehearse else {}
    os.environ |= rehearsal
    runtime = {"env_vars": _WORKER_ENVIRONMENT | rehearsal}
    try:
        if private:
            ray.init(
                address="local",
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
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        raise RunError(f"cannot join the Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
        if cluster.rehearse:
            os.environ.pop(REHEARSAL, None)
