"""An agent of our own: calls canisters over HTTP and believes only what is certified.

Every answer to an update comes with a certificate that is verified against the pinned root key; every answer
to a query carries a signature of a node whose key the root key certifies. Source: interface specification.
"""

from __future__ import annotations

import http.client
import secrets
import time
from collections.abc import Iterable
from typing import Any

from hsm import keys
from hsm.bls import public_key_to_der
from hsm.signer import Signer
from nodeos.core.errors import NodeosError, UnreachableError, UsageError
from nodeos.core.http import split_url
from nodeos.core.principal import Principal
from replica import candid, cbor
from replica.certificate import MAX_AGE, Certificate, CertificateError, open_certificate
from replica.hashing import REQUEST_DOMAIN, RESPONSE_DOMAIN, hash_of_map, read_leb128
from replica.management_types import ARGUMENTS, CANISTER_ID, INSTALL_CODE, STATUS_RESULT
from replica.tree import Path, labels

MANAGEMENT = Principal(b"")
_EXPIRY = 4 * 60 * 10**9  # nanoseconds ahead
_MAX_ANSWER = 4 << 20
_POLL_SECONDS = 0.5


class RejectedError(NodeosError):
    """The canister, or the replica for it, said no. ``error_code`` is like IC0503, or empty."""

    def __init__(self, code: int, error_code: str, message: str) -> None:
        super().__init__(f"{error_code or 'rejected'} ({code}): {message}")
        self.code = code
        self.error_code = error_code


class Agent:
    """Talks to one replica. ``root_key`` is the 96-byte BLS key; without a signer it is anonymous.

    ``patience`` (seconds) is how long an update may take.
    """

    def __init__(
        self, url: str, *, root_key: bytes, signer: Signer | None = None, patience: float = 60
    ) -> None:
        self.url = url
        self._host, self._port, _ = split_url(url, "http", 80)
        self._root_key = root_key
        self._subnet = Principal.self_authenticating(public_key_to_der(root_key))
        self._signer = signer
        self._patience = patience
        self._nodes: dict[bytes, bytes] | None = None

    @property
    def sender(self) -> Principal:
        if self._signer is None:
            return Principal.anonymous()
        return Principal.self_authenticating(self._signer.public_key)

    # --- the four operations ---

    def status(self) -> dict[str, object]:
        """What the replica says of itself; nothing of it is proven."""
        answer = cbor.decode(self._http("GET", "/api/v2/status", None)[1])
        if not isinstance(answer, dict):
            raise NodeosError(f"{self.url}: its status is not a map")
        return answer

    def call(
        self, canister: Principal, method: str, argument: bytes, *, effective: Principal | None = None
    ) -> bytes:
        """Make an update call and return its certified reply. Raises RejectedError, CertificateError."""
        content = self._content("call", canister_id=canister.raw, method_name=method, arg=argument)
        request_id = hash_of_map(content)
        path = f"/api/v4/canister/{effective or canister}/call"
        status, body = self._http("POST", path, self._envelope(content, request_id))
        if status == 200:
            answer = _map(body)
            if answer.get("status") == "non_replicated_rejection":
                raise _rejected(answer)
            certificate = self._open(answer.get("certificate"))
            outcome = _outcome(certificate, request_id)
            if outcome is not None:
                return outcome
        return self._poll(effective or canister, request_id)

    def query(self, canister: Principal, method: str, argument: bytes) -> bytes:
        """Make a query call and return the reply, whose signature was verified."""
        content = self._content("query", canister_id=canister.raw, method_name=method, arg=argument)
        request_id = hash_of_map(content)
        _, body = self._http(
            "POST", f"/api/v3/canister/{canister}/query", self._envelope(content, request_id)
        )
        answer = _map(body)
        self._check_signature(answer, request_id)
        if answer.get("status") != "replied":
            raise _rejected(answer)
        reply = answer.get("reply")
        if not isinstance(reply, dict) or not isinstance(reply.get("arg"), bytes):
            raise NodeosError(f"{self.url}: a reply without content")
        return bytes(reply["arg"])

    def read_state(self, paths: Iterable[Path], *, effective: Principal | None = None) -> Certificate:
        """A verified certificate for paths of a canister, or of the subnet if ``effective`` is None."""
        content = self._content("read_state", paths=[list(path) for path in paths])
        where = f"subnet/{self._subnet}" if effective is None else f"canister/{effective}"
        body = self._envelope(content, hash_of_map(content))
        return self._open(_map(self._http("POST", f"/api/v3/{where}/read_state", body)[1]).get("certificate"))

    # --- the management canister ---

    def create_canister(self) -> Principal:
        """Make an empty canister, as the node's operator."""
        argument = candid.encode((ARGUMENTS["provisional_create_canister_with_cycles"],), ({},))
        reply = self.call(
            MANAGEMENT, "provisional_create_canister_with_cycles", argument, effective=MANAGEMENT
        )
        principal = _record(reply, CANISTER_ID)["canister_id"]
        if not isinstance(principal, Principal):
            raise NodeosError(f"{self.url}: no canister id in the answer")
        return principal

    def install_code(
        self, canister: Principal, module: bytes, *, mode: str = "install", argument: bytes | None = None
    ) -> None:
        """Install WebAssembly; ``mode`` is install, reinstall or upgrade; ``argument`` is Candid."""
        record = {
            "mode": (mode, None),
            "canister_id": canister,
            "wasm_module": module,
            "arg": candid.encode((), ()) if argument is None else argument,
        }
        self._manage("install_code", canister, candid.encode((INSTALL_CODE,), (record,)))

    def canister_status(self, canister: Principal) -> dict[str, Any]:
        """The canister's status, for its controllers."""
        argument = candid.encode((CANISTER_ID,), ({"canister_id": canister},))
        return _record(self._manage("canister_status", canister, argument), STATUS_RESULT)

    def set_running(self, canister: Principal, running: bool) -> None:
        """Start or stop a canister."""
        argument = candid.encode((CANISTER_ID,), ({"canister_id": canister},))
        self._manage("start_canister" if running else "stop_canister", canister, argument)

    def _manage(self, method: str, canister: Principal, argument: bytes) -> bytes:
        return self.call(MANAGEMENT, method, argument, effective=canister)

    # --- underneath ---

    def _content(self, kind: str, **fields: object) -> dict[str, object]:
        return {
            "request_type": kind,
            "sender": self.sender.raw,
            "nonce": secrets.token_bytes(16),
            "ingress_expiry": time.time_ns() + _EXPIRY,
            **fields,
        }

    def _envelope(self, content: dict[str, object], request_id: bytes) -> bytes:
        envelope: dict[str, object] = {"content": content}
        if self._signer is not None:
            envelope["sender_pubkey"] = self._signer.public_key
            envelope["sender_sig"] = self._signer.sign(REQUEST_DOMAIN + request_id)
        return cbor.encode(envelope)

    def _http(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """One request; the status (200 or 202) and body of the answer."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._patience)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/cbor"})
            answer = connection.getresponse()
            data = answer.read(_MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self.url}: {error}", hint="is the replica running?") from error
        finally:
            connection.close()
        if len(data) > _MAX_ANSWER:
            raise NodeosError(f"{self.url}: an answer of more than {_MAX_ANSWER} bytes")
        if answer.status in (200, 202):
            return answer.status, data
        words = data[:500].decode(errors="replace")
        if answer.status in (429, 503):
            raise UnreachableError(f"{self.url}: {words}", hint="try again later")
        raise NodeosError(f"{self.url}: status {answer.status}: {words}")

    def _open(self, data: object) -> Certificate:
        if not isinstance(data, bytes):
            raise CertificateError("certificate.form", "the answer has no certificate")
        return open_certificate(data, root_key=self._root_key, now=time.time_ns())

    def _poll(self, effective: Principal, request_id: bytes) -> bytes:
        """Ask until the request was done."""
        end = time.monotonic() + self._patience
        while True:
            certificate = self.read_state([(b"request_status", request_id)], effective=effective)
            outcome = _outcome(certificate, request_id)
            if outcome is not None:
                return outcome
            if time.monotonic() > end:
                raise UnreachableError(f"{self.url}: the update took longer than {self._patience:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _node_keys(self) -> dict[bytes, bytes]:
        """The public keys of the subnet's nodes by their ids, certified by the root key."""
        if self._nodes is None:
            prefix = (b"subnet", self._subnet.raw, b"node")
            certificate = self.read_state([prefix])
            nodes = certificate.find(*prefix)
            self._nodes = {
                node: certificate.lookup(*prefix, node, b"public_key") or b""
                for node, _ in ([] if nodes is None else labels(nodes))
            }
        return self._nodes

    def _check_signature(self, answer: dict[str, object], request_id: bytes) -> None:
        """Raises CertificateError (query.signature, query.time) unless a node signed this answer just now."""
        match answer.get("signatures"):
            case [{"timestamp": int() as at, "signature": bytes() as signature, "identity": bytes() as node}]:
                pass
            case _:
                raise CertificateError("query.signature", "the answer is not signed")
        if abs(time.time_ns() - at) > MAX_AGE:
            raise CertificateError("query.time", "the answer is old; compare the two clocks")
        der = self._node_keys().get(node)
        if der is None:
            raise CertificateError("query.signature", "signed by a node that is not of this subnet")
        names = ("status", "reply", "reject_code", "reject_message", "error_code")
        signed = {name: answer[name] for name in names if name in answer}
        message = RESPONSE_DOMAIN + hash_of_map({**signed, "timestamp": at, "request_id": request_id})
        try:
            keys.verify(der, message, signature)
        except (keys.SignatureError, UsageError) as error:
            raise CertificateError("query.signature", "it does not hold under the node's key") from error


def _map(body: bytes) -> dict[str, object]:
    answer = cbor.decode(body)
    if not isinstance(answer, dict):
        raise NodeosError("an answer that isn't a map")
    return answer


def _rejected(answer: dict[str, object]) -> RejectedError:
    code, error_code = answer.get("reject_code"), answer.get("error_code")
    return RejectedError(
        code if isinstance(code, int) else 0,
        error_code if isinstance(error_code, str) else "",
        str(answer.get("reject_message")),
    )


def _outcome(certificate: Certificate, request_id: bytes) -> bytes | None:
    """The certified reply; None if the request isn't done. Raises RejectedError for a certified reject."""
    prefix = (b"request_status", request_id)
    match certificate.lookup(*prefix, b"status"):
        case b"replied":
            return certificate.lookup(*prefix, b"reply") or b""
        case b"rejected":
            code = certificate.lookup(*prefix, b"reject_code") or b"\x00"
            error_code = certificate.lookup(*prefix, b"error_code") or b""
            message = certificate.lookup(*prefix, b"reject_message") or b""
            raise RejectedError(read_leb128(code), error_code.decode(), message.decode())
        case b"done":
            raise NodeosError("the update was done, but its reply is no longer kept")
        case _:
            return None


def _record(reply: bytes, kind: candid.Type) -> dict[str, Any]:
    (value,) = candid.decode(reply, (kind,))
    if not isinstance(value, dict):
        raise NodeosError("the answer is not a record")
    return value
