"""The chain: the one place where state changes, one message after the other, each certified and durable.

A message runs on the canister's last state; what it leaves is written to disk, and only then published to
readers and to the message's sender. Time never goes back, not even when the machine's clock does.
"""

from __future__ import annotations

import heapq
import threading
import time as clock
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hsm.bls import SecretKey
from nodeos.core.principal import Principal
from replica import certificate
from replica.envelope import INGRESS_WINDOW, PERMITTED_DRIFT, Call
from replica.errors import ErrorCode, RejectCode, RejectError
from replica.execution import Executor, Message
from replica.management import MANAGEMENT, Management
from replica.modules import Modules
from replica.state import Canister, Change, Reject, Reply, RequestStatus
from replica.state_tree import StateTree, Subnet
from replica.store import ChainHead, Commit, Store
from replica.tree import Path, Tree, witness

# A certificate older than this is made anew when somebody asks (nanoseconds).
_FRESH = 10**9


@dataclass(frozen=True, slots=True)
class _Certified:
    """A state that was signed."""

    time: int
    tree: Tree
    signature: bytes


class Chain:
    """All canisters of this subnet. ``execute`` is for one thread; everything else for any."""

    def __init__(
        self,
        *,
        store: Store,
        modules: Modules,
        executor: Executor,
        subnet: Subnet,
        key: SecretKey,
        operator: Principal,
    ) -> None:
        self.subnet = subnet
        self._store = store
        self._executor = executor
        self._key = key
        self._lock = threading.Lock()
        self._head = store.head()
        self._tree = StateTree(subnet)
        self._management = Management(executor=executor, modules=modules, operator=operator)
        self._canisters: dict[Principal, Canister] = {}
        for canister, module_hash in store.canisters():
            code = None if module_hash is None else modules.load(store.module(module_hash))
            self._canisters[canister.id] = replace(canister, code=code)
        self._requests: dict[bytes, RequestStatus] = {}
        for request in store.requests():
            self._requests[request.id] = request
            self._tree.add_request(request)
        self._expiry = [(request.expires, request.id) for request in self._requests.values()]
        heapq.heapify(self._expiry)
        self._certified: _Certified | None = None

    # --- reading ---

    @property
    def height(self) -> int:
        return self._head.height

    def time(self) -> int:
        """Now, in nanoseconds since 1970, never before the last commit."""
        return max(clock.time_ns(), self._head.time)

    def request(self, raw: bytes) -> RequestStatus | None:
        """What became of a request, if it was done and not so long ago."""
        return self._requests.get(raw)

    def canister(self, principal: Principal) -> Canister:
        """A canister's last state. Raises RejectError (IC0301)."""
        found = self._canisters.get(principal)
        if found is None:
            raise RejectError(
                RejectCode.DESTINATION_INVALID,
                ErrorCode.CANISTER_NOT_FOUND,
                f"Canister {principal} not found",
            )
        return found

    def certificate(self, paths: Iterable[Path]) -> bytes:
        """A certificate that shows ``paths``, or their absence, and always the time."""
        certified = self._certify()
        return certificate.encode(witness(certified.tree, {*paths, (b"time",)}), certified.signature)

    def _certify(self) -> _Certified:
        with self._lock:
            if self.time() - self._head.time > _FRESH:
                # An empty block: only time passes, but that too is written, so that it can't go back.
                self._commit(Commit(head=self._next_head(self.time())))
            if self._certified is None:
                tree = self._tree.root(self._head.time, self._canisters)
                signature = certificate.sign_root(self._key, tree.digest)
                self._certified = _Certified(self._head.time, tree, signature)
            return self._certified

    # --- messages ---

    def filter(self, call: Call) -> None:
        """Refuse an update before it is taken in. Raises RejectError."""
        if call.canister == MANAGEMENT:
            self._management.check(call, self._canisters)
            return
        canister = self.canister(call.canister)
        _check_running(canister)
        self._executor.inspect(canister, _message(call, self.time()))

    def query(self, call: Call) -> Reply | Reject:
        """Answer a query from the last state."""
        try:
            canister, proof = self._with_proof(call.canister)
            _check_running(canister)
            message = replace(_message(call, self.time()), certificate=proof)
            return self._executor.query(canister, message)
        except RejectError as error:
            return _reject(error)

    def _with_proof(self, principal: Principal) -> tuple[Canister, bytes | None]:
        """A canister, and the certificate of its certified data if its code asks for one."""
        while True:
            canister = self.canister(principal)
            if canister.code is None or not canister.code.certified:
                return canister, None
            proof = self.certificate([(b"canister", principal.raw, b"certified_data")])
            if self._canisters.get(principal) is canister:  # else an update came between
                return canister, proof

    def execute(self, call: Call) -> RequestStatus:
        """Run an update, commit what it left, and tell what became of it.

        A request that was done already isn't done again. Raises StoreError if it could not be written, and
        StoppedError if the daemon ends; in both cases it didn't happen.
        """
        known = self._requests.get(call.id)
        if known is not None:
            return known
        now = max(self.time(), self._head.time + 1)
        change: Change | None = None
        next_canister = self._head.next_canister
        outcome: Reply | Reject
        try:
            if call.canister == MANAGEMENT:
                result = self._management.execute(call, self._canisters, now, next_canister)
                change, outcome, next_canister = result.change, result.outcome, result.next_canister
            else:
                before = self.canister(call.canister)
                _check_running(before)
                after, outcome = self._executor.update(before, _message(call, now))
                change = None if after is before else Change(before=before, after=after)
        except RejectError as error:
            outcome = _reject(error)
        request = RequestStatus(
            id=call.id,
            sender=call.sender,
            canister=call.canister,
            expires=max(call.expiry, now + INGRESS_WINDOW) + PERMITTED_DRIFT,
            outcome=outcome,
        )
        with self._lock:
            head = replace(self._next_head(now), next_canister=next_canister)
            self._commit(Commit(head=head, change=change, request=request))
        return request

    def _next_head(self, now: int) -> ChainHead:
        return replace(self._head, time=max(now, self._head.time + 1), height=self._head.height + 1)

    def _commit(self, commit: Commit) -> None:
        """Write, then publish. The lock is held."""
        self._store.commit(commit)
        self._head = commit.head
        if commit.change is not None:
            self._canisters[commit.change.after.id] = commit.change.after
        if commit.request is not None:
            self._requests[commit.request.id] = commit.request
            self._tree.add_request(commit.request)
            heapq.heappush(self._expiry, (commit.request.expires, commit.request.id))
        while self._expiry and self._expiry[0][0] < commit.head.time:
            _, raw = heapq.heappop(self._expiry)
            del self._requests[raw]
            self._tree.remove_request(raw)
        self._certified = None


def _message(call: Call, now: int) -> Message:
    return Message(caller=call.sender, method=call.method, argument=call.argument, time=now)


def _check_running(canister: Canister) -> None:
    if canister.status != "running":
        raise RejectError(RejectCode.CANISTER_ERROR, ErrorCode.STOPPED, f"Canister {canister.id} is stopped")


def _reject(error: RejectError) -> Reject:
    return Reject(code=error.code, error_code=error.error_code, message=error.message)
