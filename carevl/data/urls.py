"""Fetches what a URL in a data row names, without letting the row reach into the network around us.

Every connection, also after a redirect, is guarded where it is made: the name is resolved once, each address is
checked, and the connection goes to an address that was checked. Certificates are verified against the name.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from carevl.data.rows import RowError
from carevl.errors import hide_secrets

_REDIRECTS = 5
_ATTEMPTS = 3
_FIRST_PAUSE = 0.25
_TUNNELS = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
"""IPv6 ranges that carry an IPv4 address inside (RFC 6052, 8215, 3056, 4380)."""
_SHOWN = 120

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class UrlFetcher:
    """Fetches over http and https; proxies from the environment are not used."""

    seconds: float = 20.0
    """Cap on one URL, its redirects and retries included (a resolver that hangs adds its own time-out)."""
    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, such as `10.1.0.0/16` of an image server."""

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Fetch the body behind a URL.

        Raises:
            RowError: `image_refused` for an address or scheme that must not be reached, `image_too_large` over
                `max_bytes`, `image_fetch` when there is no answer in time or its status is not 200.
        """
        deadline = time.monotonic() + self.seconds
        networks = [ipaddress.ip_network(network) for network in self.allowed_networks]
        place = _parse(url)
        for _ in range(_REDIRECTS + 1):
            answer = _get(place, max_bytes, _Guard(networks, deadline), deadline)
            if isinstance(answer, bytes):
                return answer
            place = _parse(answer, place)
        raise RowError("image_fetch", f"{_quote(url)}: more than {_REDIRECTS} redirects")


def is_public(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Tell whether an address may be reached: global unicast and no tunnel to an IPv4 address, or allowed."""
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = inner or address
    if any(address in network for network in allowed):
        return True
    return address.is_global and not address.is_multicast and not any(address in tunnel for tunnel in _TUNNELS)


def _quote(url: object) -> str:
    return repr(hide_secrets(str(url))[:_SHOWN])


def _parse(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        place = base.join(url) if base else httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError) as failure:
        raise RowError("image_fetch", f"{_quote(url)} is not a URL: {failure}") from None
    if place.scheme not in ("http", "https") or not place.host:
        raise RowError("image_refused", f"{_quote(url)}: only http and https URLs with a host are fetched")
    return place


def _get(place: httpx.URL, max_bytes: int, guard: _Guard, deadline: float) -> bytes | str:
    """Return the body of one URL, or the place that it redirects to, with retries."""
    failure = "no time left"
    for attempt in range(_ATTEMPTS):
        pause = _FIRST_PAUSE * 2 ** (attempt - 1) if attempt else 0.0
        if time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
        try:
            with httpcore.ConnectionPool(ssl_context=_certificates(), network_backend=guard) as pool:
                target = httpcore.URL(
                    scheme=place.raw_scheme, host=place.raw_host, port=place.port, target=place.raw_path
                )
                headers = [(b"Host", place.netloc), (b"Accept", b"image/*, video/*"), (b"Accept-Encoding", b"identity")]
                with pool.stream("GET", target, headers=headers) as response:
                    if response.status != 429 and response.status < 500:
                        return _body(response, place, max_bytes)
                    failure = f"status {response.status}"
        except (OSError, *_TRANSIENT) as error:
            failure = f"{type(error).__name__}: {error}"
        except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol) as error:
            failure = str(error)
            break
    raise RowError("image_fetch", f"{_quote(place)}: {failure}")


_TRANSIENT = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError)


def _body(response: httpcore.Response, place: httpx.URL, max_bytes: int) -> bytes | str:
    if response.status in (301, 302, 303, 307, 308):
        for name, value in response.headers:
            if name.lower() == b"location":
                return value.decode("latin-1")
    if response.status != 200:
        raise RowError("image_fetch", f"{_quote(place)}: status {response.status}")
    parts, size = [], 0
    for part in response.iter_stream():
        size += len(part)
        if size > max_bytes:
            raise RowError("image_too_large", f"{_quote(place)}: over {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


class _Guard(httpcore.SyncBackend):
    """Connects to checked addresses only, and lets no read or write outlast the deadline."""

    def __init__(self, allowed: Sequence[Network], deadline: float) -> None:
        self._allowed, self._deadline = allowed, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: httpcore.NetworkError | httpcore.TimeoutException = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                left = _left(self._deadline)
                stream = super().connect_tcp(address, port, left, local_address, socket_options)
                return _Timed(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} does not resolve: {error}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in resolved))
        for address in addresses:
            if not is_public(ipaddress.ip_address(address), self._allowed):
                raise RowError("image_refused", f"{host[:_SHOWN]} is at {address}, which is not a public address")
        return addresses


class _Timed(httpcore.NetworkStream):
    """A stream whose reads and writes end at the deadline, however slowly the other side drips."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time allowed for one URL is over")
    return left
