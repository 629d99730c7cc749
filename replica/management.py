"""The management canister, aaaaa-aa: making canisters, installing code, asking about them.

Source: interface specification, section "The IC management canister". Only the node's operator may make
canisters, and only controllers may touch them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nodeos.core.principal import Principal
from nodeos.core.wire import ParseError
from replica import candid
from replica.envelope import Call
from replica.errors import ErrorCode, RejectCode, RejectError, canister_error
from replica.execution import Executor, Message
from replica.management_types import ARGUMENTS, CANISTER_ID, STATUS_RESULT
from replica.modules import Modules
from replica.state import Canister, CanisterStatus, Change, Reply, Space, canister_id
from replica.state_tree import LAST_CANISTER
from replica.wasm import WasmError

MANAGEMENT = Principal(b"")
_CREATION = ("create_canister", "provisional_create_canister_with_cycles")
_DEFAULT_CYCLES = 100 * 10**12
_MAX_CONTROLLERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a management call leaves."""

    change: Change | None
    outcome: Reply
    next_canister: int


@dataclass(slots=True, kw_only=True)
class _Context:
    """One management call."""

    call: Call
    arguments: dict[str, Any]
    canisters: Mapping[Principal, Canister]
    now: int
    next_canister: int
    change: Change | None = None
    reply: bytes = field(default_factory=lambda: candid.encode((), ()))


class Management:
    """Runs management calls; writes nothing itself."""

    def __init__(self, *, executor: Executor, modules: Modules, operator: Principal) -> None:
        self._executor = executor
        self._modules = modules
        self._operator = operator
        self._methods: dict[str, Callable[[_Context], None]] = {
            "create_canister": self._create,
            "provisional_create_canister_with_cycles": self._create,
            "install_code": self._install,
            "uninstall_code": self._uninstall,
            "update_settings": self._update_settings,
            "canister_status": self._status,
            "start_canister": lambda c: self._set_status(c, CanisterStatus.RUNNING),
            "stop_canister": lambda c: self._set_status(c, CanisterStatus.STOPPED),
        }

    def check(self, call: Call, canisters: Mapping[Principal, Canister]) -> None:
        """Refuse what the caller may not do, or what can't be read. Raises RejectError."""
        self._context(call, canisters, 0, 0)

    def execute(
        self, call: Call, canisters: Mapping[Principal, Canister], now: int, next_canister: int
    ) -> Result:
        """Run a call. Raises RejectError; then nothing changed."""
        context = self._context(call, canisters, now, next_canister)
        self._methods[call.method](context)
        return Result(
            change=context.change,
            outcome=Reply(data=context.reply),
            next_canister=context.next_canister,
        )

    def _context(
        self, call: Call, canisters: Mapping[Principal, Canister], now: int, next_canister: int
    ) -> _Context:
        if call.method not in self._methods:
            raise RejectError(
                RejectCode.CANISTER_REJECT,
                ErrorCode.UNKNOWN_MANAGEMENT_METHOD,
                f"Management canister has no method '{call.method}'",
            )
        arguments = read_argument(call)
        context = _Context(
            call=call, arguments=arguments, canisters=canisters, now=now, next_canister=next_canister
        )
        if call.method in _CREATION:
            if call.sender != self._operator:
                raise RejectError(
                    RejectCode.CANISTER_REJECT,
                    ErrorCode.REJECTED_MESSAGE,
                    f"Caller {call.sender} is not the node's operator, who alone may create canisters",
                )
        else:
            _target(context)
        return context

    def _create(self, context: _Context) -> None:
        number = context.next_canister
        if number > LAST_CANISTER:
            raise RejectError(
                RejectCode.SYS_FATAL, ErrorCode.TOO_MANY_CANISTERS, "the subnet has no canister ids left"
            )
        if context.arguments.get("specified_id") is not None:
            raise canister_error(ErrorCode.INVALID_PAYLOAD, "a specified_id is not supported")
        amount = context.arguments.get("amount")
        canister = Canister(
            id=canister_id(number),
            controllers=_controllers(context.arguments.get("settings"), (context.call.sender,)),
            cycles=_DEFAULT_CYCLES if amount is None else min(amount, 2**127),
        )
        context.change = Change(before=None, after=canister)
        context.next_canister = number + 1
        context.reply = candid.encode((CANISTER_ID,), ({"canister_id": canister.id},))

    def _install(self, context: _Context) -> None:
        before = _target(context)
        mode, options = context.arguments["mode"]
        options = options or {}
        if options.get("wasm_memory_persistence") == ("keep", None):
            raise canister_error(ErrorCode.INVALID_PAYLOAD, "keeping the heap on an upgrade is not supported")
        if mode == "install" and before.code is not None:
            raise canister_error(
                ErrorCode.NON_EMPTY,
                f"Canister {before.id} cannot be installed because the canister is not empty. "
                "Try installing with mode='reinstall' instead.",
            )
        if mode == "upgrade" and before.code is None:
            raise canister_error(
                ErrorCode.NO_WASM_MODULE, f"Canister {before.id} has no Wasm module that could be upgraded"
            )
        module = context.arguments["wasm_module"]
        try:
            code = self._modules.load(module)
        except WasmError as error:
            raise canister_error(
                ErrorCode.INVALID_WASM,
                f"Error from Canister {before.id}: Canister's Wasm module is not valid: {error.message}",
            ) from error
        message = Message(
            caller=context.call.sender,
            method="",
            argument=context.arguments["arg"],
            time=context.now,
        )
        old, entry, fresh = before, "canister_post_upgrade", frozenset({Space.HEAP})
        if mode == "upgrade":
            if not options.get("skip_pre_upgrade"):
                old = self._executor.pre_upgrade(before, message)
        else:
            old = replace(before, stable=(), certified_data=b"")
            entry, fresh = "canister_init", frozenset(Space)
        after = self._executor.start(replace(old, code=code, heap=(), globals=()), message, entry)
        context.change = Change(
            before=before, after=replace(after, version=before.version + 1), module=module, fresh=fresh
        )

    def _uninstall(self, context: _Context) -> None:
        before = _target(context)
        after = replace(
            before,
            code=None,
            heap=(),
            globals=(),
            stable=(),
            certified_data=b"",
            version=before.version + 1,
        )
        context.change = Change(before=before, after=after, fresh=frozenset(Space))

    def _update_settings(self, context: _Context) -> None:
        before = _target(context)
        controllers = _controllers(context.arguments["settings"], before.controllers)
        after = replace(before, controllers=controllers, version=before.version + 1)
        context.change = Change(before=before, after=after)

    def _set_status(self, context: _Context, status: CanisterStatus) -> None:
        # Nothing is ever in flight behind a message here, so stopping is immediate.
        before = _target(context)
        after = replace(before, status=status, version=before.version + 1)
        context.change = Change(before=before, after=after)

    def _status(self, context: _Context) -> None:
        canister = _target(context)
        context.reply = candid.encode((STATUS_RESULT,), (_status_record(canister),))


def read_argument(call: Call) -> dict[str, Any]:
    """The record that a management method takes. Raises RejectError."""
    try:
        (value,) = candid.decode(call.argument, (ARGUMENTS[call.method],))
    except (candid.CandidError, ParseError) as error:
        raise canister_error(
            ErrorCode.INVALID_PAYLOAD, f"Error decoding candid of {call.method}: {error.message}"
        ) from error
    if not isinstance(value, dict):
        raise canister_error(ErrorCode.INVALID_PAYLOAD, "expected a record")
    return value


def effective_canister(call: Call) -> Principal | None:
    """The canister that a management call is about, None if it makes one. Raises RejectError."""
    if call.method in _CREATION or call.method not in ARGUMENTS:
        return None
    principal = read_argument(call)["canister_id"]
    return principal if isinstance(principal, Principal) else None


def _target(context: _Context) -> Canister:
    """The canister that is named, if the caller controls it."""
    principal = context.arguments["canister_id"]
    canister = context.canisters.get(principal)
    if canister is None:
        raise RejectError(
            RejectCode.DESTINATION_INVALID,
            ErrorCode.CANISTER_NOT_FOUND,
            f"Canister {principal} not found",
        )
    if context.call.sender not in canister.controllers:
        raise canister_error(
            ErrorCode.INVALID_CONTROLLER,
            f"Only the controllers of the canister {principal} can control it; "
            f"{context.call.sender} is none of them",
        )
    return canister


def _controllers(settings: object, default: tuple[Principal, ...]) -> tuple[Principal, ...]:
    """The controllers in settings. Settings that have no effect here are refused, not ignored."""
    if not isinstance(settings, dict):
        return default
    for name, value in settings.items():
        if name != "controllers" and value is not None:
            raise canister_error(ErrorCode.INVALID_PAYLOAD, f"the setting {name} is not supported")
    wanted = settings.get("controllers")
    if wanted is None:
        return default
    if len(wanted) > _MAX_CONTROLLERS:
        raise canister_error(ErrorCode.INVALID_PAYLOAD, f"more than {_MAX_CONTROLLERS} controllers")
    return tuple(sorted(set(wanted)))


def _status_record(canister: Canister) -> dict[str, object]:
    return {
        "status": (str(canister.status), None),
        "ready_for_migration": False,
        "version": canister.version,
        "settings": {
            "controllers": list(canister.controllers),
            "compute_allocation": 0,
            "memory_allocation": 0,
            "freezing_threshold": 2_592_000,
            "reserved_cycles_limit": 5_000_000_000_000,
            "log_visibility": ("controllers", None),
            "wasm_memory_limit": 0,
            "wasm_memory_threshold": 0,
            "environment_variables": [],
        },
        "module_hash": None if canister.code is None else canister.code.module_hash,
        "memory_size": canister.memory_bytes,
        "cycles": canister.cycles,
        "reserved_cycles": 0,
        "idle_cycles_burned_per_day": 0,
        "query_stats": {
            "num_calls_total": 0,
            "num_instructions_total": 0,
            "request_payload_bytes_total": 0,
            "response_payload_bytes_total": 0,
        },
    }
