"""WebAssembly through wasmtime: compile, make instances, reach their state, call with a limit on work.

Host functions and calls go through wasmtime's C interface directly: the Python package keeps a host
function's exception in one variable of the process, where two threads take each other's. Here a host
function's failure is kept with the call that it belongs to.

Work is bounded twice: by fuel (about one unit per instruction, the same on every machine) and by epochs
(ticks of the clock, for queries and for shutting down). Code must be made executable after it was written,
which MemoryDenyWriteExecute= of systemd forbids; ``Engine`` says so in words.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from nodeos.core.errors import ToolError
from replica.state import WASM_PAGE, ZERO, Pages
from replica.wasm import MEMORY_EXPORT, WasmError

I32, I64 = "i32", "i64"
_MASKS = {I32: 0xFFFF_FFFF, I64: 0xFFFF_FFFF_FFFF_FFFF}
_KINDS = {I32: 0, I64: 1}
_MAX_TICKS = 3600
_MAX_TABLE = 1_000_000


class OutOfFuelError(Exception):
    """The call used up its fuel."""


class InterruptedCallError(Exception):
    """The call ran past its deadline, or the engine was told to stop."""


class WasmTrapError(Exception):
    """The code trapped by itself: unreachable, out of bounds and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFunction:
    """``call(context, *arguments)`` with naturals; ``parameters`` and ``result`` are I32 or I64."""

    name: str
    parameters: tuple[str, ...]
    result: str | None
    call: Callable[..., int | None]


class _Thread(threading.local):
    """The call that runs in this thread: host functions find their context here."""

    context: Any = None
    failure: BaseException | None = None


_thread = _Thread()
_functions: list[HostFunction] = []


@ffi.wasmtime_func_callback_t  # type: ignore[untyped-decorator, unused-ignore]
def _trampoline(
    index: int | None, _caller: Any, arguments: Any, _count: int, results: Any, _results: int
) -> int:
    try:
        function = _functions[index or 0]
        values = [
            (arguments[i].of.i32 if kind == I32 else arguments[i].of.i64) & _MASKS[kind]
            for i, kind in enumerate(function.parameters)
        ]
        value = function.call(_thread.context, *values)
        if function.result is not None:
            results[0].kind = _KINDS[function.result]
            results[0].of.i64 = value
        return 0
    except BaseException as error:
        _thread.failure = error
        message = b"host function"
        trap = ffi.wasmtime_trap_new(ctypes.create_string_buffer(message), len(message))
        return ctypes.cast(trap, ctypes.c_void_p).value or 0


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator, unused-ignore]
def _keep(_index: int | None) -> None:
    """Host functions live as long as the process."""


class Engine:
    """Compiles modules and makes instances. Safe to use from several threads."""

    def __init__(self, host: Mapping[bool, tuple[HostFunction, ...]]) -> None:
        """``host`` holds the functions for modules with 32-bit (False) and 64-bit (True) memories.

        Raises ToolError if this process may not make code executable.
        """
        config = wasmtime.Config()
        config.consume_fuel = True
        config.epoch_interruption = True
        config.cranelift_nan_canonicalization = True
        config.wasm_relaxed_simd_deterministic = True
        for proposal in ("threads", "multi_memory", "gc", "exceptions", "function_references"):
            setattr(config, f"wasm_{proposal}", False)
        self._engine = wasmtime.Engine(config)
        self._stopped = False
        try:
            self.compile(
                b"\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x0a\x04\x01\x02\x00\x0b"
            )
        except WasmError as error:
            raise ToolError(
                f"compiled code can't be run here: {error.message}",
                hint="the unit must not have MemoryDenyWriteExecute=yes",
            ) from error
        self._linkers = {wide: self._link(functions) for wide, functions in host.items()}

    def _link(self, functions: tuple[HostFunction, ...]) -> wasmtime.Linker:
        linker = wasmtime.Linker(self._engine)
        types = {I32: wasmtime.ValType.i32, I64: wasmtime.ValType.i64}
        for function in functions:
            results = [types[function.result]()] if function.result else []
            kind = wasmtime.FuncType([types[p]() for p in function.parameters], results)
            _functions.append(function)
            module, name = b"ic0", function.name.encode()
            error = ffi.wasmtime_linker_define_func(
                linker.ptr(),
                ctypes.create_string_buffer(module),
                len(module),
                ctypes.create_string_buffer(name),
                len(name),
                kind.ptr(),
                _trampoline,
                len(_functions) - 1,
                _keep,
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)
        return linker

    def compile(self, code: bytes) -> Any:
        """A compiled module. Raises WasmError. Takes about a second per megabyte of code."""
        try:
            return wasmtime.Module(self._engine, bytearray(code))
        except wasmtime.WasmtimeError as error:
            raise WasmError(f"not valid WebAssembly: {error}") from error

    def load(self, serialized: bytes) -> Any | None:
        """A module from what ``Module.serialize`` gave; None if it's from another version or machine.

        The bytes become code that runs: hand over only what was checked.
        """
        try:
            return wasmtime.Module.deserialize(self._engine, serialized)
        except wasmtime.WasmtimeError:
            return None

    def instantiate(
        self, module: Any, *, wide: bool, fuel: int, heap_limit: int, ticks: int = _MAX_TICKS
    ) -> Instance:
        """A new instance, data segments applied. ``fuel`` and ``ticks`` bound all calls on it together;
        ``heap_limit`` in bytes. Raises WasmError."""
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=heap_limit, table_elements=_MAX_TABLE, instances=1, memories=1)
        store.set_fuel(fuel)
        store.set_epoch_deadline(min(ticks, _MAX_TICKS))
        if self._stopped:  # looked at behind the line above, so that stop() can't slip between
            store.set_epoch_deadline(0)
        try:
            instance = self._linkers[wide].instantiate(store, module)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise WasmError(f"it can't be instantiated: {error}") from error
        return Instance(store, instance, fuel)

    def tick(self) -> None:
        """Advance the epoch by one tick."""
        ffi.wasmtime_engine_increment_epoch(self._engine.ptr())

    def stop(self) -> None:
        """Interrupt every call that runs, and all later ones."""
        self._stopped = True
        for _ in range(_MAX_TICKS + 1):
            self.tick()


def _last_line(text: str) -> str:
    """wasmtime puts a backtrace before the cause."""
    return text.strip().splitlines()[-1].strip()


class Instance:
    """One instance for one message. Not shared between threads."""

    def __init__(self, store: Any, instance: Any, fuel: int) -> None:
        self._store = store
        self._exports = instance.exports(store)
        self._fuel = fuel
        memory = self._exports.get(MEMORY_EXPORT)
        self._memory = memory if isinstance(memory, wasmtime.Memory) else None

    def call(self, name: str, context: object) -> None:
        """Call an exported function without parameters and results.

        Raises what a host function raised, OutOfFuelError, InterruptedCallError or WasmTrapError.
        """
        function = self._exports[name]
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        _thread.context, _thread.failure = context, None
        try:
            error = ffi.wasmtime_func_call(
                self._store._context(), ctypes.byref(function._func), None, 0, None, 0, ctypes.byref(trap)
            )
            failure = _thread.failure
        finally:
            _thread.context, _thread.failure = None, None
        # Both are wrapped at once, so that both are freed.
        fault = wasmtime.WasmtimeError._from_ptr(error) if error else None
        reason = wasmtime.Trap._from_ptr(trap) if trap else None
        if failure is not None:
            raise failure
        if fault is not None:
            raise WasmTrapError(_last_line(str(fault)))
        if reason is None:
            return
        match reason.trap_code:
            case wasmtime.TrapCode.OUT_OF_FUEL:
                raise OutOfFuelError
            case wasmtime.TrapCode.INTERRUPT:
                raise InterruptedCallError
            case _:
                raise WasmTrapError(_last_line(reason.message))

    def charge(self, units: int) -> None:
        """Take fuel for work that the host does. Raises OutOfFuelError."""
        left = self._store.get_fuel() - units
        if left < 0:
            raise OutOfFuelError
        self._store.set_fuel(left)

    @property
    def used(self) -> int:
        """The fuel used so far."""
        return self._fuel - int(self._store.get_fuel())

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the memory. Raises WasmTrapError beyond its end."""
        return ctypes.string_at(self._address(start, size), size) if size else b""

    def write(self, start: int, data: bytes) -> None:
        """Write to the memory. Raises WasmTrapError beyond its end."""
        address = self._address(start, len(data))
        if data:
            ctypes.memmove(address, data, len(data))

    def _address(self, start: int, size: int) -> int:
        if self._memory is None or start + size > self._memory.data_len(self._store):
            raise WasmTrapError("heap out of bounds")
        return self._base() + start

    def _base(self) -> int:
        if self._memory is None:
            raise WasmTrapError("the module has no memory")
        return ctypes.cast(self._memory.data_ptr(self._store), ctypes.c_void_p).value or 0

    def restore(self, heap: Pages, names: tuple[str, ...], values: tuple[int, ...]) -> None:
        """Put a saved state in the place of a new instance's."""
        if self._memory is not None:
            first = self._memory.size(self._store)
            if len(heap) > first:
                self._memory.grow(self._store, len(heap) - first)
            base = self._base()
            for index, page in enumerate(heap):
                if index < first or page is not ZERO:
                    ctypes.memmove(base + index * WASM_PAGE, page, WASM_PAGE)
        for name, bits in zip(names, values, strict=True):
            value = self._global(name)
            value.of.i64 = bits
            error = ffi.wasmtime_global_set(
                self._store._context(), ctypes.byref(self._exports[name]._global), ctypes.byref(value)
            )
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)

    def heap(self, known: Pages) -> Pages:
        """The memory as it is now; pages that equal those of ``known`` are the same objects."""
        if self._memory is None:
            return ()
        base, pages = self._base(), []
        for index in range(self._memory.size(self._store)):
            page = ctypes.string_at(base + index * WASM_PAGE, WASM_PAGE)
            old = known[index] if index < len(known) else ZERO
            pages.append(old if page == old else page)
        return tuple(pages)

    def globals(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """The raw bits of globals, as naturals below 2**64."""
        return tuple(self._global(name).of.i64 & _MASKS[I64] for name in names)

    def _global(self, name: str) -> Any:
        value = ffi.wasmtime_val_t()
        ctypes.memset(ctypes.byref(value), 0, ctypes.sizeof(value))
        ffi.wasmtime_global_get(
            self._store._context(), ctypes.byref(self._exports[name]._global), ctypes.byref(value)
        )
        return value
