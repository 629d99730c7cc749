"""Rewriting modules: everything that is state becomes reachable, and what can't be saved is refused."""

from __future__ import annotations

import contextlib

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from replica.wasm import MEMORY_EXPORT, START_EXPORT, WasmError, prepare


def assemble(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def exports(code: bytes) -> list[str]:
    return [item.name for item in wasmtime.Module(wasmtime.Engine(), bytearray(code)).exports]


FULL = """(module
  (import "ic0" "time" (func (result i64)))
  (type $t (func))
  (memory 1)
  (table 1 funcref)
  (global $stack (mut i32) (i32.const 1048576))
  (global $fixed i32 (i32.add (i32.const 1) (i32.const 2)))
  (global $wide (mut i64) (i64.const -1))
  (global $small (mut f32) (f32.const 1))
  (global $real (mut f64) (f64.const 2))
  (func $begin (global.set $wide (i64.const 5)))
  (func (export "canister_update go") (global.set $stack (i32.const 7)))
  (start $begin)
  (elem (i32.const 0) $begin)
  (data (i32.const 0) "data"))"""


def test_state_becomes_reachable() -> None:
    prepared = prepare(assemble(FULL))
    assert prepared.globals == tuple(f"nodeos:global{n}" for n in (0, 2, 3, 4))
    assert prepared.memory
    assert prepared.start
    assert exports(prepared.code) == ["canister_update go", *prepared.globals, MEMORY_EXPORT, START_EXPORT]


def test_the_start_function_no_longer_starts() -> None:
    prepared = prepare(assemble('(module (func $f unreachable) (start $f) (func (export "g")))'))
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    wasmtime.Instance(store, wasmtime.Module(engine, bytearray(prepared.code)), [])


def test_a_module_without_anything() -> None:
    prepared = prepare(assemble("(module)"))
    assert (prepared.globals, prepared.memory, prepared.start) == ((), False, False)
    assert exports(prepared.code) == []


def test_metadata_sections() -> None:
    text = '(module (@custom "icp:public candid:service" "service : {}") (@custom "icp:private x" "y")'
    prepared = prepare(assemble(text + ' (@custom "name2" "ignored"))'))
    assert prepared.metadata == (("candid:service", True, b"service : {}"), ("x", False, b"y"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('(module (import "env" "memory" (memory 1)))', "isn't a function"),
        ('(module (import "env" "g" (global i32)))', "isn't a function"),
        ("(module (global (mut funcref) (ref.null func)))", "can't be saved"),
        ("(module (global (mut v128) (v128.const i64x2 0 0)))", "can't be saved"),
        ("(module (memory 1) (memory 1))", "more than one memory"),
        ('(module (func (export "nodeos:start")))', "reserved"),
        ("(module " + "(global (mut i32) (i32.const 0))" * 1001 + ")", "mutable globals"),
        ("(module " + "".join(f'(@custom "icp:public {n}" "")' for n in range(17)) + ")", "metadata"),
    ],
)
def test_modules_that_cannot_be_saved_are_refused(text: str, words: str) -> None:
    with pytest.raises(WasmError, match=words):
        prepare(assemble(text))


def test_what_is_no_module_is_refused() -> None:
    for data in (b"", b"\x00asm\x02\x00\x00\x00", b"\x7fELF" + bytes(60)):
        with pytest.raises(WasmError, match="not a WebAssembly module"):
            prepare(data)


@given(st.integers(min_value=8), st.binary(max_size=4))
def test_damaged_modules_are_refused_or_left_to_the_compiler(place: int, patch: bytes) -> None:
    code = bytearray(assemble(FULL))
    place %= len(code)
    code[place : place + len(patch)] = patch
    with contextlib.suppress(WasmError):
        prepare(bytes(code))


@given(st.integers(min_value=8))
def test_cut_modules_are_refused_or_left_to_the_compiler(length: int) -> None:
    code = assemble(FULL)
    with contextlib.suppress(WasmError):
        prepare(code[: length % len(code)])
