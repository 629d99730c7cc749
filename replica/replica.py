"""Requests in, answers out: what the endpoints of the HTTP interface do, without HTTP.

Source: interface specification, section "HTTPS Interface". Signatures are checked before anything else is
looked at. All functions here are for worker threads; none of them waits for another request.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError
from replica import cbor
from replica.authentication import authenticate
from replica.chain import Chain
from replica.envelope import Call, Kind, ReadState, check_expiry, parse
from replica.errors import HttpError, RejectError
from replica.hashing import RESPONSE_DOMAIN, hash_of_map
from replica.management import MANAGEMENT, effective_canister
from replica.state import Reject, Reply, RequestStatus
from replica.tree import Path

_API_VERSION = "0.66.0"


class Replica:
    """Answers requests from a chain. ``node_key`` signs the answers to queries."""

    def __init__(self, chain: Chain, node_key: Ed25519PrivateKey, version: str) -> None:
        self.chain = chain
        self._node_key = node_key
        self._version = version

    def status(self) -> bytes:
        """GET status."""
        return cbor.encode(
            {
                "ic_api_version": _API_VERSION,
                "impl_version": self._version,
                "replica_health_status": "healthy",
                "root_key": self.chain.subnet.root_key,
                "certified_height": self.chain.height,
            }
        )

    def accept(self, body: bytes, effective: Principal) -> Call:
        """Check a call as far as it can be before it is executed.

        Raises HttpError, or RejectError for a rejection that isn't certified.
        """
        call = self._call(body, Kind.CALL)
        check_expiry(call.expiry, self.chain.time())
        if call.canister == MANAGEMENT:
            target = effective_canister(call)
            if target is not None and target != effective:
                raise HttpError(400, f"the call is about canister {target}, not {effective} as in the path")
        elif call.canister != effective:
            raise HttpError(400, f"the call is to canister {call.canister}, not {effective} as in the path")
        if self.chain.request(call.id) is None:
            self.chain.filter(call)
        return call

    def execute(self, call: Call) -> RequestStatus:
        """Run an accepted call; for the one thread that executes."""
        return self.chain.execute(call)

    def call_answer(self, status: RequestStatus) -> bytes:
        """The answer to a synchronous call that was executed."""
        proof = self.chain.certificate([(b"request_status", status.id)])
        return cbor.encode({"status": "replied", "certificate": proof})

    def query(self, body: bytes, effective: Principal) -> bytes:
        """POST query."""
        call = self._call(body, Kind.QUERY)
        if call.sender != Principal.anonymous():
            check_expiry(call.expiry, self.chain.time())
        if call.canister != effective:
            raise HttpError(400, f"the query is to canister {call.canister}, not {effective} as in the path")
        return self._signed(call.id, self.chain.query(call))

    def read_state(self, body: bytes, effective: Principal | None) -> bytes:
        """POST read_state; ``effective`` is None for the subnet endpoint."""
        envelope = parse(body, Kind.READ_STATE)
        sender = authenticate(envelope)
        request = envelope.request
        if not isinstance(request, ReadState):
            raise HttpError(400, "content: not a read_state request")
        if sender != Principal.anonymous():
            check_expiry(request.expiry, self.chain.time())
        self._check_paths(request.paths, sender, effective)
        return cbor.encode({"certificate": self.chain.certificate(request.paths)})

    def _call(self, body: bytes, kind: Kind) -> Call:
        envelope = parse(body, kind)
        authenticate(envelope)
        request = envelope.request
        if not isinstance(request, Call):
            raise HttpError(400, "content: not a call")
        return request

    def _signed(self, request_id: bytes, outcome: Reply | Reject) -> bytes:
        answer: dict[str, object]
        match outcome:
            case Reply():
                answer = {"status": "replied", "reply": {"arg": outcome.data}}
            case Reject():
                answer = {"status": "rejected", **reject_fields(outcome)}
        timestamp = self.chain.time()
        signed = hash_of_map({**answer, "timestamp": timestamp, "request_id": request_id})
        answer["signatures"] = [
            {
                "timestamp": timestamp,
                "signature": self._node_key.sign(RESPONSE_DOMAIN + signed),
                "identity": self.chain.subnet.node_id.raw,
            }
        ]
        return cbor.encode(answer)

    def _check_paths(self, paths: Iterable[Path], sender: Principal, effective: Principal | None) -> None:
        """Refuse paths that the sender may not read (interface specification, "Request: Read state")."""
        requests = {path[1] for path in paths if len(path) > 1 and path[0] == b"request_status"}
        if len(requests) > 1:
            raise HttpError(400, "paths: at most one request id at a time")
        for path in paths:
            self._check_path(path, sender, effective)

    def _check_path(self, path: Path, sender: Principal, effective: Principal | None) -> None:
        match path:
            case (b"time",) | (b"subnet", *_) | (b"canister_ranges", *_):
                return
            case (b"request_status", raw, *_) if effective is not None:
                status = self.chain.request(raw)
                if status is not None and status.sender != sender:
                    raise HttpError(403, "paths: this request was made by another sender")
                return
            case (b"canister", raw, b"controllers" | b"module_hash") if _is(raw, effective):
                return
            case (b"canister", raw, b"metadata", name) if _is(raw, effective):
                self._check_metadata(raw, name, sender)
                return
        raise HttpError(404, "paths: a path that can't be read here")

    def _check_metadata(self, raw: bytes, name: bytes, sender: Principal) -> None:
        try:
            canister = self.chain.canister(Principal(raw))
        except (RejectError, ParseError):
            return  # its absence may be shown
        private = {n for n, public, _ in canister.code.metadata if not public} if canister.code else set()
        if name.decode(errors="replace") in private and sender not in canister.controllers:
            raise HttpError(403, "paths: private metadata is for controllers")


def _is(raw: bytes, effective: Principal | None) -> bool:
    return effective is not None and raw == effective.raw


def reject_fields(reject: Reject) -> dict[str, object]:
    """A reject as answers carry it."""
    return {
        "reject_code": int(reject.code),
        "reject_message": reject.message,
        "error_code": str(reject.error_code),
    }
