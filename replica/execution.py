"""Running one message of one canister: in, a canister and a message; out, the canister behind it.

Nothing is changed in place: a trap leaves the canister that went in. Limits as on the Internet Computer
(interface specification, "Limits"), except for memory, which is bounded by what one machine holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nodeos.core.principal import Principal
from replica.engine import Engine, Instance, InterruptedCallError, OutOfFuelError, WasmTrapError
from replica.errors import ErrorCode, RejectCode, RejectError, canister_error
from replica.state import WASM_PAGE, Canister, Code, Reject, Reply
from replica.system_api import (
    CanisterTrapError,
    Context,
    ContractViolationError,
    Mode,
    StableMemory,
    host_functions,
)
from replica.wasm import START_EXPORT, WasmError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Work in instructions, memory in WebAssembly pages of 64 KiB, ``query_seconds`` by the clock."""

    update: int = 40_000_000_000
    query: int = 5_000_000_000
    install: int = 300_000_000_000
    inspect: int = 200_000_000
    query_seconds: int = 10
    heap_pages: int = 4096
    stable_pages: int = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a canister is asked. ``time`` in nanoseconds since 1970; ``certificate`` for queries only."""

    caller: Principal
    method: str
    argument: bytes
    time: int
    certificate: bytes | None = None


class StoppedError(Exception):
    """The daemon is ending: the message was neither done nor refused."""


def new_engine() -> Engine:
    """An engine that offers the System API. Raises ToolError if code can't be run here."""
    return Engine({wide: host_functions(wide) for wide in (False, True)})


class Executor:
    """Runs messages on an engine within limits. Safe to use from several threads."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits

    def update(self, canister: Canister, message: Message) -> tuple[Canister, Reply | Reject]:
        """Run an update, or a query in an update's place. Raises RejectError if it trapped."""
        code = _code(canister)
        if f"canister_update {message.method}" in code.methods:
            context = self._run(canister, message, Mode.UPDATE, f"canister_update {message.method}")
            return self._after(canister, context), _outcome(context)
        if f"canister_query {message.method}" in code.methods:
            name = f"canister_query {message.method}"
            return canister, _outcome(self._run(canister, message, Mode.REPLICATED_QUERY, name))
        raise _no_method(canister, "update", message.method)

    def query(self, canister: Canister, message: Message) -> Reply | Reject:
        """Run a query; whatever it changes is forgotten. Raises RejectError if it trapped."""
        code = _code(canister)
        for kind in ("canister_query", "canister_composite_query"):
            name = f"{kind} {message.method}"
            if name in code.methods:
                return _outcome(self._run(canister, message, Mode.QUERY, name))
        raise _no_method(canister, "query", message.method)

    def inspect(self, canister: Canister, message: Message) -> None:
        """Ask the canister whether it takes this update. Raises RejectError if not."""
        if "canister_inspect_message" not in _code(canister).methods:
            return
        context = self._run(canister, message, Mode.INSPECT, "canister_inspect_message")
        if not context.accepted:
            raise RejectError(
                RejectCode.CANISTER_REJECT,
                ErrorCode.REJECTED_MESSAGE,
                f"Canister {canister.id} rejected the message",
            )

    def start(self, canister: Canister, message: Message, entry: str) -> Canister:
        """The canister after its new code's start function and ``entry`` (canister_init or
        canister_post_upgrade) if it has one. ``canister`` has the code, and no heap yet."""
        code = _code(canister)
        instance = self._instance(canister, code, Mode.INIT)
        context = self._context(canister, message, Mode.START, instance)
        if code.start:
            self._call(context, START_EXPORT)
        context.mode = Mode.INIT
        if entry in code.methods:
            self._call(context, entry)
        return self._after(canister, context)

    def pre_upgrade(self, canister: Canister, message: Message) -> Canister:
        """The canister after canister_pre_upgrade, if it has one."""
        if "canister_pre_upgrade" not in _code(canister).methods:
            return canister
        return self._after(canister, self._run(canister, message, Mode.PRE_UPGRADE, "canister_pre_upgrade"))

    def _run(self, canister: Canister, message: Message, mode: Mode, name: str) -> Context:
        code = _code(canister)
        instance = self._instance(canister, code, mode)
        instance.restore(canister.heap, code.globals, canister.globals)
        context = self._context(canister, message, mode, instance)
        self._call(context, name)
        return context

    def _instance(self, canister: Canister, code: Code, mode: Mode) -> Instance:
        limits = self._limits
        fuel = {
            Mode.QUERY: limits.query,
            Mode.INSPECT: limits.inspect,
            Mode.INIT: limits.install,
            Mode.PRE_UPGRADE: limits.install,
        }.get(mode, limits.update)
        bounded = {"ticks": limits.query_seconds} if mode in Mode.QUERY | Mode.INSPECT else {}
        try:
            return self._engine.instantiate(
                code.compiled,
                wide=code.wide,
                fuel=fuel,
                heap_limit=limits.heap_pages * WASM_PAGE,
                **bounded,
            )
        except WasmError as error:
            raise canister_error(
                ErrorCode.INVALID_WASM, f"Canister {canister.id}: {error.message}"
            ) from error

    def _context(self, canister: Canister, message: Message, mode: Mode, instance: Instance) -> Context:
        return Context(
            mode=mode,
            instance=instance,
            canister=canister,
            caller=message.caller,
            method=message.method,
            argument=message.argument,
            time=message.time,
            stable=StableMemory(canister.stable, self._limits.stable_pages),
            certificate=message.certificate,
        )

    def _call(self, context: Context, name: str) -> None:
        """Call an export and put every way to fail into the words of the Internet Computer."""
        who = f"Error from Canister {context.canister.id}:"
        try:
            context.instance.call(name, context)
        except CanisterTrapError as error:
            message = f"{who} Canister called `ic0.trap` with message: '{error}'"
            raise canister_error(ErrorCode.CALLED_TRAP, message) from error
        except ContractViolationError as error:
            message = f"{who} Canister violated contract: {error}"
            raise canister_error(ErrorCode.CONTRACT_VIOLATION, message) from error
        except OutOfFuelError as error:
            message = f"{who} Canister exceeded the limit of instructions for single message execution"
            raise canister_error(ErrorCode.INSTRUCTION_LIMIT, message) from error
        except InterruptedCallError as error:
            if context.mode not in Mode.QUERY | Mode.INSPECT:
                raise StoppedError from error
            message = f"{who} the query took longer than {self._limits.query_seconds} seconds"
            raise canister_error(ErrorCode.TIME_LIMIT, message) from error
        except WasmTrapError as error:
            raise canister_error(ErrorCode.TRAPPED, f"{who} Canister trapped: {error}") from error

    @staticmethod
    def _after(canister: Canister, context: Context) -> Canister:
        code = _code(canister)
        certified = context.certified_data
        return replace(
            canister,
            heap=context.instance.heap(canister.heap),
            globals=context.instance.globals(code.globals),
            stable=context.stable.pages(),
            certified_data=canister.certified_data if certified is None else certified,
            version=canister.version + 1,
        )


def _code(canister: Canister) -> Code:
    if canister.code is None:
        raise canister_error(
            ErrorCode.NO_WASM_MODULE,
            f"Error from Canister {canister.id}: Attempted to execute a message, but the canister "
            "contains no Wasm module.",
        )
    return canister.code


def _no_method(canister: Canister, kind: str, method: str) -> RejectError:
    return canister_error(
        ErrorCode.METHOD_NOT_FOUND,
        f"Error from Canister {canister.id}: Canister has no {kind} method '{method}'.",
    )


def _outcome(context: Context) -> Reply | Reject:
    if context.outcome is None:
        raise canister_error(
            ErrorCode.DID_NOT_REPLY,
            f"Error from Canister {context.canister.id}: Canister did not reply to the call",
        )
    return context.outcome
