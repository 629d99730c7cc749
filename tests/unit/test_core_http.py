from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from nodeos.core.errors import NodeosError, RefusedError, UnreachableError, UsageError
from nodeos.core.http import MAX_BODY, Client
from tests.support.certificates import Authority, make_authority
from tests.support.tls_server import serve


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


@pytest.fixture(scope="module")
def pem(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.serve(tmp_path_factory.mktemp("tls") / "server.pem", "127.0.0.1")


def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    if path == "/api/echo":
        return 200, f"{method} ".encode() + body
    if path == "/api/large":
        return 200, bytes(MAX_BODY + 1)
    status = int(path.rsplit("/", 1)[1])
    return status, body


@pytest.fixture(scope="module")
def port(pem: Path) -> Iterator[int]:
    with serve(answer, pem) as port:
        yield port


@pytest.fixture
def client(port: int, authority: Authority) -> Client:
    return Client(f"https://127.0.0.1:{port}/api/", ca=authority.pem)


def test_a_request_and_its_answer(client: Client) -> None:
    assert client.request("POST", "/echo", b"body") == b"POST body"
    assert client.request("GET", "/echo") == b"GET "


def test_another_authority_is_refused(port: int) -> None:
    client = Client(f"https://127.0.0.1:{port}", ca=make_authority().pem)
    with pytest.raises(NodeosError, match="not the pinned one") as caught:
        client.request("GET", "/api/echo")
    assert not isinstance(caught.value, UnreachableError)


def test_another_name_is_refused(authority: Authority, tmp_path: Path) -> None:
    pem = authority.serve(tmp_path / "other.pem", "registrar.example")
    with serve(answer, pem) as port, pytest.raises(NodeosError, match="not the pinned one"):
        Client(f"https://127.0.0.1:{port}", ca=authority.pem).request("GET", "/api/echo")


def test_nobody_there_is_unreachable(authority: Authority) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="refused"):
            Client(url, ca=authority.pem).request("GET", "/")


def test_silence_is_unreachable(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="timed out"):
            Client(url, ca=authority.pem, timeout=0.1).request("GET", "/")


def body(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_is_unreachable(client: Client, status: int) -> None:
    with pytest.raises(UnreachableError, match=f"/{status}: too much") as caught:
        client.request("POST", f"/{status}", body(message="too much", hint="wait"))
    assert caught.value.hint == "wait"


@pytest.mark.parametrize("status", [403, 409])
def test_a_refusal_brings_every_finding(client: Client, status: int) -> None:
    findings = [{"code": "a.b", "message": "one"}, {"code": "c", "message": "two"}]
    with pytest.raises(RefusedError, match="not you") as caught:
        client.request("POST", f"/{status}", body(message="not you", findings=findings))
    assert [f.to_json() for f in caught.value.findings] == findings


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_other_errors_are_told_in_the_services_words(client: Client, status: int) -> None:
    with pytest.raises(NodeosError, match="no such thing") as caught:
        client.request("POST", f"/{status}", body(message="no such thing"))
    assert type(caught.value) is NodeosError


@pytest.mark.parametrize("data", [b"", b"<html>", b"{}", body(message=1), body(hint="x")])
def test_an_error_without_words_is_told_by_its_status(client: Client, data: bytes) -> None:
    with pytest.raises(NodeosError, match="answered with status 500"):
        client.request("POST", "/500", data)


def test_an_answer_that_is_too_large_is_refused(client: Client) -> None:
    with pytest.raises(NodeosError, match="larger than"):
        client.request("GET", "/large")


@pytest.mark.parametrize(
    "url",
    [
        *("http://registrar.example", "registrar.example", "https://", "ftp://x", "https://x:99999"),
        *("https://x:y", "https://[::1"),
    ],
)
def test_only_https_is_taken(url: str, authority: Authority) -> None:
    with pytest.raises(UsageError, match=r"not an (https:// )?address"):
        Client(url, ca=authority.pem)


def test_no_other_authority_is_trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the system's either, whatever the environment says of them."""
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    client = Client("https://registrar.example", ca=authority.pem)
    trusted = client._context.get_ca_certs(binary_form=True)
    assert trusted == [authority.certificate.public_bytes(Encoding.DER)]


def test_an_address_with_a_password_is_refused_without_showing_it(authority: Authority) -> None:
    with pytest.raises(UsageError, match="no user name") as caught:
        Client("https://name:word@registrar.example", ca=authority.pem)
    assert "word@" not in str(caught.value)


def test_a_damaged_authority_is_told() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for ca in (pem, "nonsense", "", "é"):
        with pytest.raises(UsageError, match="pinned certificate can't be read"):
            Client("https://registrar.example", ca=ca)
