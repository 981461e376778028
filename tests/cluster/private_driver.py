"""Starts a private Ray with work on it, prints where it listens and lies, and ends when its input does."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path

import psutil

from carevl.cluster.connect import ray_cluster
from carevl.settings.tree import Cluster


def _listening() -> list[tuple[str, str, int]]:
    """Return name, address and port of every socket of this process and its children that listens."""
    me = psutil.Process()
    return [
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def main() -> None:
    """Do what the module says; with an argument, end in an error of that name."""
    with ray_cluster(Cluster(num_cpus=2)):
        import ray

        ray.get(ray.remote(_listening).remote())
        node = ray._private.worker._global_node
        session = Path(node.get_session_dir_path())
        words = [word for process in psutil.Process().children(recursive=True) for word in process.cmdline()]
        facts = {
            "gcs": node.gcs_address,
            "directory": str(session.parents[1]),
            "mode": oct(session.parents[1].stat().st_mode & 0o777),
            "token_in_commands": any(os.environ["RAY_AUTH_TOKEN"] in word for word in words),
            "token": os.environ["RAY_AUTH_TOKEN"],
        }
        print(json.dumps(facts), flush=True)
        for line in sys.stdin:
            if line.strip():
                raise getattr(builtins, line.strip())("as it was asked")
            print(json.dumps(_listening()), flush=True)


if __name__ == "__main__":
    main()
