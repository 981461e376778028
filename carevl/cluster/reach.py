"""Whether a Ray cluster can be reached, asked before Ray itself waits for it; and whether its node here is alive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from carevl.errors import MachineError
from carevl.periodic import call_every
from carevl.store.run import RunError

_TIMEOUT = 5.0
"""Seconds that the head has for an answer."""
_INTERVAL, _LOOKS = 5.0, 2
"""Seconds between looks at the node, and looks in a row that miss it until it counts as lost."""
_LOST = b"carevl: the local Raylet is dead\n"


def check_address(address: str) -> None:
    """Ask the head of the cluster at an address whether it is there, in one request.

    Args:
        address: as in `cluster.address` or `RAY_ADDRESS`.

    Raises:
        MachineError: nobody answers there.
        RunError: it is no address of a head, something else answers, or the token is another.
    """
    import grpc  # type: ignore[import-untyped]
    import ray
    from ray._private import services
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    if address.startswith(("http://", "https://")):
        raise RunError(
            f"{address} is a dashboard, which takes jobs (`ray job submit`); a program joins a head: HOST:PORT or auto"
        )
    try:
        head = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise RunError(
            f"{address} is no address of a Ray cluster ({_shorten(error)}); write HOST:PORT or auto"
        ) from None
    if head is None or "://" in head:
        return
    try:
        with init_grpc_channel(head) as channel:
            head_node = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            head_node.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=_TIMEOUT)
    except ray.exceptions.AuthenticationError as error:
        raise RunError(
            f"the Ray cluster at {address} wants a token, and there is none here: {_shorten(error)}"
        ) from None
    except grpc.RpcError as error:
        raise _explain(address, error.code().name, str(error.details() or "")) from None


def _explain(address: str, code: str, details: str) -> RunError | MachineError:
    """Return the sentence about a request to a head that failed."""
    if code == "UNAUTHENTICATED":
        return RunError(
            f"the Ray cluster at {address} wants another token; set RAY_AUTH_TOKEN_PATH to the file that its nodes have"
        )
    if code == "UNIMPLEMENTED" or "Failed parsing HTTP/2" in details:
        return RunError(f"what answers at {address} is not the head of a Ray cluster; check the address and its port")
    if "Connection refused" in details:
        problem = "nothing listens there: the head is gone, or the address is another"
    elif code == "DEADLINE_EXCEEDED":
        problem = f"no answer in {_TIMEOUT:.0f} s: the head is gone, or a firewall is between"
    else:
        problem = _shorten(details)
    return MachineError(f"no Ray cluster can be reached at {address}: {problem}; start it, or set cluster.address anew")


def _shorten(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200].rstrip(". ")


@contextmanager
def end_without_node() -> Iterator[None]:
    """End this process if Ray's node on this machine is gone, as Ray's core does when it notices; it does not always.

    Nothing that waits for Ray would ever return.
    """
    import ray

    missed = 0

    def look() -> None:
        nonlocal missed
        if not ray.is_initialized():
            return
        node = ray.get_runtime_context().get_node_id()
        alive = any(each["Alive"] and each["NodeID"] == node for each in ray.nodes())
        missed = 0 if alive else missed + 1
        if missed == _LOOKS:
            os.write(2, _LOST)
            os._exit(1)

    with call_every(_INTERVAL, look):
        yield
