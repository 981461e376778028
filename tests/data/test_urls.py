"""URL images: refused by default, kept out of private networks, capped in bytes and time. The servers are real."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from carevl.data.rows import RowError
from carevl.data.urls import UrlFetcher, is_public

LOOPBACK = ("127.0.0.1/32",)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        name, _, argument = self.path[1:].partition("?")
        if name == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name == "drip-header":
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name == "big":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 100_000)
        elif name == "to":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
        elif name == "flaky" and len(self.server.seen) < 3:
            self.send_error(503)
        elif name == "absent":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture " + self.headers["Host"].encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.base = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def error_of(url: str, fetcher: UrlFetcher, max_bytes: int = 10**6) -> RowError:
    with pytest.raises(RowError) as failure:
        fetcher.fetch(url, max_bytes)
    return failure.value


def test_loopback_is_refused_and_never_contacted(server: Server) -> None:
    port = server.server_port
    for host in (
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ):
        error = error_of(f"http://{host}:{port}/a.png", UrlFetcher(seconds=5))
        assert error.kind == "image_refused", host
        assert "not a public address" in error.message
    assert server.seen == []
    assert UrlFetcher(allowed_networks=LOOPBACK).fetch(f"{server.base}/a.png", 100).startswith(b"picture")
    assert server.seen == ["/a.png"]


PRIVATE = (
    "0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1 192.168.1.1 192.0.2.1 198.18.0.1 "
    "224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:10.0.0.1 fe80::1 fe80::1%eth0 fc00::1 fd12::1 "
    "ff02::1 64:ff9b::a00:1 64:ff9b:1::1 2002:a00:1:: 2001:0:a00:1::1 2001:db8::1"
)


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("target", ["http://127.0.0.2:{port}/a", "http://10.0.0.1/a", "//169.254.169.254/a"])
def test_a_redirect_to_a_private_address_is_refused(server: Server, target: str) -> None:
    fetcher = UrlFetcher(seconds=5, allowed_networks=LOOPBACK)
    error = error_of(f"{server.base}/to?{target.format(port=server.server_port)}", fetcher)
    assert error.kind == "image_refused"
    assert len(server.seen) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(server: Server, target: str) -> None:
    error = error_of(f"{server.base}/to?{target}", UrlFetcher(seconds=5, allowed_networks=LOOPBACK))
    assert error.kind == "image_refused"


def test_redirects_are_followed_up_to_a_limit(server: Server) -> None:
    fetcher = UrlFetcher(seconds=5, allowed_networks=LOOPBACK)
    host = f"127.0.0.1:{server.server_port}".encode()
    assert fetcher.fetch(f"{server.base}/to?/a.png", 100) == b"picture " + host
    error = error_of(f"{server.base}/to?/to?/to?/to?/to?/to?/to?/to?/a", fetcher)
    assert "more than 5 redirects" in error.message


def test_a_body_over_the_cap_is_cut_off(server: Server) -> None:
    error = error_of(f"{server.base}/big", UrlFetcher(seconds=5, allowed_networks=LOOPBACK), max_bytes=250_000)
    assert error.kind == "image_too_large"


@pytest.mark.parametrize("path", ["drip", "drip-header"])
def test_a_server_that_drips_runs_out_of_time(server: Server, path: str) -> None:
    started = time.monotonic()
    error = error_of(f"{server.base}/{path}", UrlFetcher(seconds=0.6, allowed_networks=LOOPBACK))
    assert error.kind == "image_fetch"
    assert time.monotonic() - started < 5


def test_a_passing_failure_is_tried_again(server: Server) -> None:
    assert UrlFetcher(seconds=5, allowed_networks=LOOPBACK).fetch(f"{server.base}/flaky", 100).startswith(b"picture")
    assert len(server.seen) == 3


def test_a_lasting_failure_is_not_tried_again(server: Server) -> None:
    error = error_of(f"{server.base}/absent", UrlFetcher(seconds=5, allowed_networks=LOOPBACK))
    assert (error.kind, server.seen) == ("image_fetch", ["/absent"])
    assert "status 404" in error.message


def test_a_closed_port_is_an_error_that_names_the_url() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        error = error_of(url, UrlFetcher(seconds=5, allowed_networks=LOOPBACK))
    assert error.kind == "image_fetch"
    assert url in error.message


@pytest.mark.parametrize(
    "url", ["http://", "http:///a", "http://[::1", "http://a b/", "http://\ud800/", "http://x:99999/", "http://\0/"]
)
def test_what_is_no_url_is_an_error(url: str) -> None:
    assert error_of(url, UrlFetcher(seconds=2)).kind in ("image_fetch", "image_refused")
