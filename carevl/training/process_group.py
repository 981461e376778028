"""The process group of training workers: on one machine, its store and its connections listen on loopback.

torch's store asks nobody who they are: whoever reaches its port reads, sets and deletes keys.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_LOOPBACK, _INTERFACE = "127.0.0.1", "lo"
_served: dict[int, Any] = {}
"""Stores that this process, the first worker's, serves, by their ports."""


@dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """The backend, and seconds that its operations may take."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what sets the group up."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Sets workers on one machine up over loopback, those on several as Ray does."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len({*worker_group.execute(ray.util.get_node_ip_address)}) > 1:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        n_workers = len(worker_group)
        port = worker_group.execute_single(0, _serve, n_workers)
        arguments = (n_workers, port, backend_config.backend, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *arguments) for rank in range(n_workers)])


def _serve(n_workers: int) -> int:
    """Start the store; return its port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((_LOOPBACK, 0))
    port = int(listener.getsockname()[1])
    _served[port] = TCPStore(
        _LOOPBACK, port, n_workers, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return port


def _join(rank: int, n_workers: int, port: int, backend: str, timeout_s: int) -> None:
    """Make this worker one of the group."""
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    os.environ |= {
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": _INTERFACE,
        "NCCL_SOCKET_IFNAME": _INTERFACE,
    }
    store = _served.get(port) or TCPStore(_LOOPBACK, port, n_workers, is_master=False)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=n_workers, timeout=timeout)
