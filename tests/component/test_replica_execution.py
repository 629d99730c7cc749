"""Canisters on a chain in this process: commits and roll-backs, limits, durability, management."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import wasmtime

from hsm.bls import SecretKey
from nodeos.core.errors import UsageError
from nodeos.core.principal import Principal
from replica import candid, state
from replica.certificate import Certificate, open_certificate
from replica.chain import Chain
from replica.engine import Engine
from replica.envelope import Call
from replica.errors import RejectError
from replica.execution import Executor, Limits, new_engine
from replica.management import MANAGEMENT
from replica.management_types import ARGUMENTS, CANISTER_ID, INSTALL_CODE, STATUS_RESULT
from replica.modules import Modules
from replica.state import Reject, Reply
from replica.state_tree import Subnet
from replica.store import Store, StoreError

KEY = SecretKey(b"\x05" * 32)
OPERATOR, STRANGER = Principal(b"operator\x02"), Principal(b"stranger\x02")
SUBNET = Subnet(public_key=KEY.public_key, node_key=b"node key")
LIMITS = Limits(
    update=50_000_000, query=50_000_000, install=50_000_000, inspect=1_000_000, heap_pages=32, stable_pages=8
)
COUNTER = (Path(__file__).parents[2] / "replica/canisters/counter.wat").read_text()
NOTHING = candid.encode((), ())

# Each method shows one way to change state, or to fail after having changed it.
ZOO = """(module
  (import "ic0" "msg_reply" (func $reply))
  (import "ic0" "msg_reply_data_append" (func $append (param i32 i32)))
  (import "ic0" "msg_reject" (func $reject (param i32 i32)))
  (import "ic0" "msg_arg_data_size" (func $size (result i32)))
  (import "ic0" "msg_arg_data_copy" (func $copy (param i32 i32 i32)))
  (import "ic0" "msg_caller_size" (func $caller_size (result i32)))
  (import "ic0" "msg_caller_copy" (func $caller (param i32 i32 i32)))
  (import "ic0" "trap" (func $trap (param i32 i32)))
  (import "ic0" "debug_print" (func $print (param i32 i32)))
  (import "ic0" "time" (func $time (result i64)))
  (import "ic0" "stable64_size" (func $stable_size (result i64)))
  (import "ic0" "stable64_grow" (func $stable_grow (param i64) (result i64)))
  (import "ic0" "stable64_read" (func $stable_read (param i64 i64 i64)))
  (import "ic0" "stable64_write" (func $stable_write (param i64 i64 i64)))
  (import "ic0" "certified_data_set" (func $certify (param i32 i32)))
  (import "ic0" "data_certificate_size" (func $certificate_size (result i32)))
  (import "ic0" "data_certificate_copy" (func $certificate (param i32 i32 i32)))
  (import "ic0" "global_timer_set" (func $timer (param i64) (result i64)))
  (memory 2)
  (global $count (mut i64) (i64.const 0))
  (global $starts (mut i32) (i32.const 0))
  (data (i32.const 0) "wrong")
  (func $start (global.set $starts (i32.add (global.get $starts) (i32.const 1))))
  (start $start)
  (func $bump
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (i64.store (i32.const 1024) (global.get $count)))
  (func $tell
    (i64.store (i32.const 2048) (global.get $count))
    (i64.store (i32.const 2056) (i64.load (i32.const 1024)))
    (i32.store (i32.const 2064) (global.get $starts))
    (call $append (i32.const 2048) (i32.const 20))
    (call $reply))
  (func (export "canister_update bump") (call $bump) (call $tell))
  (func (export "canister_query tell") (call $tell))
  (func (export "canister_query bump_in_query") (call $bump) (call $tell))
  (func (export "canister_update bump_trap") (call $bump) (call $trap (i32.const 0) (i32.const 5)))
  (func (export "canister_update bump_unreachable") (call $bump) unreachable)
  (func (export "canister_update bump_divide") (call $bump)
    (drop (i32.div_u (i32.const 1) (i32.const 0))))
  (func (export "canister_update bump_reject") (call $bump) (call $reject (i32.const 0) (i32.const 5)))
  (func (export "canister_update bump_silent") (call $bump))
  (func (export "canister_update reply_twice") (call $bump) (call $tell) (call $tell))
  (func (export "canister_update beyond") (call $append (i32.const 131000) (i32.const 100)))
  (func (export "canister_update timer") (drop (call $timer (i64.const 1))))
  (func $spin (loop $l (br $l)))
  (func (export "canister_update spin") (call $bump) (call $spin))
  (func (export "canister_query spin_query") (call $spin))
  (func (export "canister_query spin_host") (loop $l (drop (call $time)) (br $l)))
  (func $deep (call $deep))
  (func (export "canister_update deep") (call $bump) (call $deep))
  (func (export "canister_update grow_heap")
    (i32.store (i32.const 2048) (memory.grow (i32.const 16)))
    (call $append (i32.const 2048) (i32.const 4)) (call $reply))
  (func (export "canister_update grow_stable")
    (i64.store (i32.const 2048) (call $stable_grow (i64.const 5)))
    (call $append (i32.const 2048) (i32.const 8)) (call $reply))
  (func (export "canister_update save")
    (call $copy (i32.const 4096) (i32.const 0) (call $size))
    (if (i64.eqz (call $stable_size)) (then (drop (call $stable_grow (i64.const 2)))))
    (call $stable_write (i64.const 65534) (i64.const 4096) (i64.extend_i32_u (call $size)))
    (call $reply))
  (func (export "canister_query saved")
    (call $stable_read (i64.const 4096) (i64.const 65534) (i64.const 5))
    (call $append (i32.const 4096) (i32.const 5)) (call $reply))
  (func (export "canister_query stable_beyond")
    (call $stable_read (i64.const 0) (i64.const 0xfffffffffffffff0) (i64.const 32)))
  (func (export "canister_query who")
    (call $caller (i32.const 4096) (i32.const 0) (call $caller_size))
    (call $append (i32.const 4096) (call $caller_size)) (call $reply))
  (func (export "canister_update certify")
    (call $certify (i32.const 0) (i32.const 5)) (call $reply))
  (func (export "canister_query certified")
    (call $certificate (i32.const 4096) (i32.const 0) (call $certificate_size))
    (call $append (i32.const 4096) (call $certificate_size)) (call $reply))
  (func (export "canister_query certify_in_query") (call $certify (i32.const 0) (i32.const 5)))
  (func (export "canister_pre_upgrade")
    (i64.store (i32.const 2048) (global.get $count))
    (if (i64.eqz (call $stable_size)) (then (drop (call $stable_grow (i64.const 2)))))
    (call $stable_write (i64.const 0) (i64.const 2048) (i64.const 8)))
  (func (export "canister_post_upgrade")
    (call $stable_read (i64.const 2048) (i64.const 0) (i64.const 8))
    (global.set $count (i64.load (i32.const 2048)))
    (i64.store (i32.const 1024) (global.get $count)))
)"""


def assemble(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


class World:
    """A chain that can be opened again, and calls to it."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory, self.engine = directory, engine
        self._numbers = itertools.count(1)
        self.open()

    def open(self) -> None:
        self.store = Store(self.directory, SUBNET.public_key)
        self.modules = Modules(self.engine, self.store)
        self.chain = Chain(
            store=self.store,
            modules=self.modules,
            executor=Executor(self.engine, LIMITS),
            subnet=SUBNET,
            key=KEY,
            operator=OPERATOR,
        )

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def make(self, canister: Principal, method: str, argument: bytes, sender: Principal) -> Call:
        number = next(self._numbers)
        raw = hashlib.sha256(number.to_bytes(8, "big")).digest()
        return Call(
            id=raw,
            sender=sender,
            expiry=self.chain.time() + 10**11,
            nonce=None,
            canister=canister,
            method=method,
            argument=argument,
        )

    def update(
        self, canister: Principal, method: str, argument: bytes = b"", sender: Principal = OPERATOR
    ) -> Reply | Reject:
        return self.chain.execute(self.make(canister, method, argument, sender)).outcome

    def query(
        self, canister: Principal, method: str, argument: bytes = b"", sender: Principal = OPERATOR
    ) -> Reply | Reject:
        return self.chain.query(self.make(canister, method, argument, sender))

    def manage(self, method: str, record: dict[str, object], sender: Principal = OPERATOR) -> Reply | Reject:
        argument = candid.encode((ARGUMENTS[method],), (record,))
        return self.update(MANAGEMENT, method, argument, sender)

    def create(self) -> Principal:
        (made,) = candid.decode(data(self.manage("create_canister", {})), (CANISTER_ID,))
        assert isinstance(made, dict)
        principal = made["canister_id"]
        assert isinstance(principal, Principal)
        return principal

    def install(self, canister: Principal, module: bytes, mode: str = "install") -> Reply | Reject:
        record = {"mode": (mode, None), "canister_id": canister, "wasm_module": module, "arg": NOTHING}
        return self.update(MANAGEMENT, "install_code", candid.encode((INSTALL_CODE,), (record,)))

    def installed(self, text: str) -> Principal:
        canister = self.create()
        data(self.install(canister, assemble(text)))
        return canister

    def certificate(self, *path: bytes) -> Certificate:
        return open_certificate(
            self.chain.certificate([path]), root_key=KEY.public_key, now=self.chain.time()
        )


def data(outcome: Reply | Reject) -> bytes:
    assert isinstance(outcome, Reply), outcome
    return outcome.data


def rejected(outcome: Reply | Reject, error_code: str, words: str = "") -> None:
    assert isinstance(outcome, Reject), outcome
    assert outcome.error_code == error_code, outcome
    assert words in outcome.message


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


@pytest.fixture
def world(tmp_path: Path, engine: Engine) -> Iterator[World]:
    made = World(tmp_path / "state", engine)
    yield made
    made.store.close()


@pytest.fixture
def zoo(world: World) -> Principal:
    return world.installed(ZOO)


def told(world: World, canister: Principal) -> tuple[int, int, int]:
    """The count in the global, the count in memory, and how often the start function ran."""
    raw = data(world.query(canister, "tell"))
    return (
        int.from_bytes(raw[:8], "little"),
        int.from_bytes(raw[8:16], "little"),
        int.from_bytes(raw[16:], "little"),
    )


# --- commit and roll back ---


def test_updates_commit_memory_and_hidden_globals(world: World, zoo: Principal) -> None:
    for _ in range(3):
        data(world.update(zoo, "bump"))
    assert told(world, zoo) == (3, 3, 1)
    world.reopen()
    assert told(world, zoo) == (3, 3, 1)


def test_queries_roll_back(world: World, zoo: Principal) -> None:
    assert int.from_bytes(data(world.query(zoo, "bump_in_query"))[:8], "little") == 1
    assert told(world, zoo) == (0, 0, 1)


def test_queries_as_updates_roll_back(world: World, zoo: Principal) -> None:
    assert int.from_bytes(data(world.update(zoo, "bump_in_query"))[:8], "little") == 1
    assert told(world, zoo) == (0, 0, 1)


@pytest.mark.parametrize(
    ("method", "error_code", "words"),
    [
        ("bump_trap", "IC0503", "`ic0.trap` with message: 'wrong'"),
        ("bump_unreachable", "IC0502", "unreachable"),
        ("bump_divide", "IC0502", "divide by zero"),
        ("bump_silent", "IC0506", "did not reply"),
        ("reply_twice", "IC0504", "answered already"),
        ("beyond", "IC0502", "out of bounds"),
        ("spin", "IC0522", "instructions"),
        ("deep", "IC0502", "stack"),
        ("timer", "IC0504", "timers"),
        ("missing", "IC0536", "no update method 'missing'"),
    ],
)
def test_failures_roll_back_and_reject(
    world: World, zoo: Principal, method: str, error_code: str, words: str
) -> None:
    rejected(world.update(zoo, method), error_code, words)
    assert told(world, zoo) == (0, 0, 1)


def test_a_reject_of_the_canister_commits(world: World, zoo: Principal) -> None:
    outcome = world.update(zoo, "bump_reject")
    rejected(outcome, "IC0406", "wrong")
    assert isinstance(outcome, Reject)
    assert outcome.code == 4
    assert told(world, zoo) == (1, 1, 1)


@pytest.mark.parametrize(
    ("method", "error_code", "words"),
    [
        ("spin_query", "IC0522", "instructions"),
        ("spin_host", "IC0522", "instructions"),
        ("bump", "IC0536", "no query method"),
        ("certify_in_query", "IC0504", "certified_data_set"),
        ("stable_beyond", "IC0504", "out of bounds"),
    ],
)
def test_failing_queries(world: World, zoo: Principal, method: str, error_code: str, words: str) -> None:
    rejected(world.query(zoo, method), error_code, words)


def test_failures_of_two_threads_are_kept_apart(world: World, zoo: Principal) -> None:
    """wasmtime's Python package would mix them up: it keeps a host function's exception for all threads."""

    def fail(method: str, words: str) -> None:
        for _ in range(200):
            rejected(world.query(zoo, method), "IC0504", words)

    with ThreadPoolExecutor(4) as pool:
        cases = [("certify_in_query", "certified_data_set"), ("stable_beyond", "out of bounds")] * 2
        for future in [pool.submit(fail, *case) for case in cases]:
            future.result()


def test_the_caller_is_told(world: World, zoo: Principal) -> None:
    assert data(world.query(zoo, "who", sender=STRANGER)) == STRANGER.raw


def test_memory_grows_up_to_the_limit(world: World, zoo: Principal) -> None:
    assert data(world.update(zoo, "grow_heap")) == (2).to_bytes(4, "little")
    world.reopen()
    assert data(world.update(zoo, "grow_heap")) == b"\xff" * 4
    assert data(world.update(zoo, "grow_stable")) == bytes(8)
    assert data(world.update(zoo, "grow_stable")) == b"\xff" * 8


def test_stable_memory_across_pages_and_reopening(world: World, zoo: Principal) -> None:
    data(world.update(zoo, "save", b"hello"))
    assert data(world.query(zoo, "saved")) == b"hello"
    world.reopen()
    assert data(world.query(zoo, "saved")) == b"hello"


def test_only_dirty_pages_are_written(world: World, zoo: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    original = state.Change.dirty

    def counted(change: state.Change, space: state.Space) -> Iterator[tuple[int, bytes]]:
        for number, content in original(change, space):
            written.append(number)
            yield number, content

    monkeypatch.setattr(state.Change, "dirty", counted)
    data(world.update(zoo, "bump"))
    assert written == [0]  # the counter and the reply's buffer, both in the first 4096 bytes


def test_certified_data(world: World, zoo: Principal) -> None:
    data(world.update(zoo, "certify"))
    raw = data(world.query(zoo, "certified"))
    certificate = open_certificate(raw, root_key=KEY.public_key, now=world.chain.time())
    assert certificate.lookup(b"canister", zoo.raw, b"certified_data") == b"wrong"


# --- requests, time, certificates ---


def test_a_request_is_done_once(world: World, zoo: Principal) -> None:
    call = world.make(zoo, "bump", b"", OPERATOR)
    first = world.chain.execute(call)
    world.reopen()
    assert world.chain.execute(call) == first
    assert told(world, zoo)[0] == 1


def test_request_statuses_are_certified(world: World, zoo: Principal) -> None:
    done = world.chain.execute(world.make(zoo, "bump_trap", b"", OPERATOR))
    certificate = world.certificate(b"request_status", done.id)
    assert certificate.lookup(b"request_status", done.id, b"status") == b"rejected"
    assert certificate.lookup(b"request_status", done.id, b"error_code") == b"IC0503"
    absent = world.certificate(b"request_status", bytes(32))
    assert absent.find(b"request_status", bytes(32)) is None


def test_old_statuses_are_dropped(world: World, zoo: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    done = world.chain.execute(world.make(zoo, "bump", b"", OPERATOR))
    later = world.chain.time() + 20 * 60 * 10**9
    monkeypatch.setattr("replica.chain.clock.time_ns", lambda: later)
    data(world.update(zoo, "bump"))
    assert world.chain.request(done.id) is None
    assert world.certificate(b"request_status", done.id).find(b"request_status", done.id) is None
    world.reopen()
    assert world.chain.request(done.id) is None


def test_time_does_not_go_back(world: World, zoo: Principal, monkeypatch: pytest.MonkeyPatch) -> None:
    data(world.update(zoo, "bump"))
    before = world.chain.time()
    head = world.store.head().time
    monkeypatch.setattr("replica.chain.clock.time_ns", lambda: before - 10**15)
    world.reopen()
    data(world.update(zoo, "bump"))
    assert world.store.head().time == head + 1


def test_module_hash_and_controllers_are_certified(world: World) -> None:
    canister = world.installed(COUNTER)
    certificate = world.certificate(b"canister", canister.raw, b"module_hash")
    digest = hashlib.sha256(assemble(COUNTER)).digest()
    assert certificate.lookup(b"canister", canister.raw, b"module_hash") == digest


# --- the store ---


def test_what_could_not_be_written_did_not_happen(
    world: World, zoo: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "commit", full)
        with pytest.raises(StoreError):
            world.update(zoo, "bump")
    assert told(world, zoo) == (0, 0, 1)


def test_a_transaction_is_whole_or_absent(
    world: World, zoo: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("replica.store._write_request", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.update(zoo, "bump")
    world.reopen()
    assert told(world, zoo) == (0, 0, 1)


def test_one_process_at_a_time(world: World) -> None:
    with pytest.raises(UsageError, match="another replica"):
        Store(world.directory, SUBNET.public_key)


def test_another_chains_state_is_refused(world: World) -> None:
    world.store.close()
    with pytest.raises(UsageError, match="another chain key"):
        Store(world.directory, b"another key")
    world.open()


# --- compiled code ---


def compiled_file(world: World) -> Path:
    (path,) = (world.directory / "compiled").iterdir()
    return path


@contextmanager
def counted_compiles(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    calls: list[int] = []
    original = Engine.compile

    def compile_(engine: Engine, code: bytes) -> object:
        calls.append(len(code))
        return original(engine, code)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "compile", compile_)
        world.reopen()
        yield calls


def test_compiled_code_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    canister = world.installed(COUNTER)
    with counted_compiles(world, monkeypatch) as calls:
        data(world.update(canister, "increment"))
    assert calls == []


@pytest.mark.parametrize("damage", [b"\x00", b""])
def test_damaged_compiled_code_is_not_run(
    world: World, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    canister = world.installed(COUNTER)
    path = compiled_file(world)
    path.write_bytes(damage + path.read_bytes()[1:])
    with counted_compiles(world, monkeypatch) as calls:
        assert candid.decode_any(data(world.update(canister, "increment"))) == [1]
    assert len(calls) == 1


def test_compiled_code_of_another_version_is_not_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    canister = world.installed(COUNTER)
    path = compiled_file(world)
    foreign = b"not wasmtime's"
    path.write_bytes(foreign)
    world.store.record_compiled(path.name, hashlib.sha256(foreign).digest())
    with counted_compiles(world, monkeypatch) as calls:
        assert candid.decode_any(data(world.update(canister, "increment"))) == [1]
    assert len(calls) == 1


def test_unused_compiled_code_is_dropped(world: World) -> None:
    world.installed(COUNTER)
    (world.directory / "compiled" / "old").write_bytes(b"x")
    world.reopen()
    world.modules.drop_unused()
    assert compiled_file(world).name != "old"


# --- the management canister ---


def test_canister_ids_count_up(world: World) -> None:
    assert [str(world.create()), str(world.create())] == [
        "rwlgt-iiaaa-aaaaa-aaaaa-cai",
        "rrkah-fqaaa-aaaaa-aaaaq-cai",
    ]


@pytest.mark.parametrize("method", ["create_canister", "provisional_create_canister_with_cycles"])
def test_only_the_operator_creates(world: World, method: str) -> None:
    rejected(world.manage(method, {}, sender=STRANGER), "IC0406", "operator")
    call = world.make(MANAGEMENT, method, candid.encode((ARGUMENTS[method],), ({},)), STRANGER)
    with pytest.raises(RejectError, match="operator"):
        world.chain.filter(call)


@pytest.mark.parametrize(
    "method",
    ["canister_status", "start_canister", "stop_canister", "uninstall_code", "update_settings"],
)
def test_only_controllers_control(world: World, method: str) -> None:
    canister = world.create()
    record: dict[str, object] = {"canister_id": canister, "settings": {}}
    rejected(world.manage(method, record, sender=STRANGER), "IC0512", "controllers")


def test_only_controllers_install(world: World) -> None:
    canister = world.create()
    record = {"mode": ("install", None), "canister_id": canister, "wasm_module": b"", "arg": b""}
    argument = candid.encode((INSTALL_CODE,), (record,))
    rejected(world.update(MANAGEMENT, "install_code", argument, STRANGER), "IC0512")


def test_missing_canisters(world: World) -> None:
    absent = state.canister_id(7)
    rejected(world.update(absent, "x"), "IC0301", "not found")
    rejected(world.query(absent, "x"), "IC0301")
    rejected(world.manage("canister_status", {"canister_id": absent}), "IC0301")


def test_empty_canisters(world: World) -> None:
    canister = world.create()
    rejected(world.update(canister, "x"), "IC0537")
    rejected(world.query(canister, "x"), "IC0537")
    rejected(world.install(canister, assemble(COUNTER), "upgrade"), "IC0537")


def test_unknown_methods_and_bad_arguments(world: World) -> None:
    rejected(world.update(MANAGEMENT, "mint", NOTHING), "IC0407", "mint")
    rejected(world.update(MANAGEMENT, "create_canister", b"junk"), "IC0408", "DIDL")
    rejected(world.manage("create_canister", {"settings": {"compute_allocation": 5}}), "IC0408", "compute")
    named: dict[str, object] = {"specified_id": state.canister_id(5)}
    rejected(world.manage("provisional_create_canister_with_cycles", named), "IC0408", "specified_id")


def test_installing_twice_is_refused(world: World, zoo: Principal) -> None:
    rejected(world.install(zoo, assemble(COUNTER)), "IC0514", "not empty")


def test_upgrade_keeps_stable_memory_and_drops_the_heap(world: World, zoo: Principal) -> None:
    data(world.update(zoo, "save", b"hello"))
    for _ in range(2):
        data(world.update(zoo, "bump"))
    data(world.install(zoo, assemble(ZOO.replace('"wrong"', '"other"')), "upgrade"))
    # The count came through stable memory by the canister's own hooks; the new code started once.
    assert told(world, zoo) == (2, 2, 1)
    assert data(world.query(zoo, "saved")) == b"hello"
    world.reopen()
    assert told(world, zoo) == (2, 2, 1)
    assert data(world.query(zoo, "saved")) == b"hello"


def test_reinstall_drops_everything(world: World, zoo: Principal) -> None:
    data(world.update(zoo, "save", b"hello"))
    data(world.update(zoo, "bump"))
    data(world.install(zoo, assemble(ZOO), "reinstall"))
    for _ in range(2):
        assert told(world, zoo) == (0, 0, 1)
        rejected(world.query(zoo, "saved"), "IC0504", "out of bounds")
        world.reopen()


@pytest.mark.parametrize("entry", ["canister_post_upgrade", "canister_pre_upgrade"])
def test_a_failing_upgrade_changes_nothing(world: World, entry: str) -> None:
    failing = f'(module (func (export "{entry}") unreachable) (func (export "canister_update x")))'
    canister = world.installed(failing)
    before = world.chain.canister(canister)
    rejected(world.install(canister, assemble(failing), "upgrade"), "IC0502")
    assert world.chain.canister(canister) is before


def test_stopped_canisters_do_nothing(world: World, zoo: Principal) -> None:
    data(world.manage("stop_canister", {"canister_id": zoo}))
    rejected(world.update(zoo, "bump"), "IC0508", "stopped")
    rejected(world.query(zoo, "tell"), "IC0508")
    world.reopen()
    data(world.manage("start_canister", {"canister_id": zoo}))
    data(world.update(zoo, "bump"))


def test_uninstall(world: World, zoo: Principal) -> None:
    data(world.manage("uninstall_code", {"canister_id": zoo}))
    rejected(world.query(zoo, "tell"), "IC0537")
    world.reopen()
    rejected(world.query(zoo, "tell"), "IC0537")
    data(world.install(zoo, assemble(ZOO)))
    assert told(world, zoo) == (0, 0, 1)


def test_controllers_change(world: World, zoo: Principal) -> None:
    data(world.manage("update_settings", {"canister_id": zoo, "settings": {"controllers": [STRANGER]}}))
    world.reopen()
    rejected(world.manage("canister_status", {"canister_id": zoo}), "IC0512")
    raw = data(world.manage("canister_status", {"canister_id": zoo}, sender=STRANGER))
    (status,) = candid.decode(raw, (STATUS_RESULT,))
    assert isinstance(status, dict)
    assert status["settings"]["controllers"] == [STRANGER]
    assert status["status"] == ("running", None)


# --- what can't be installed ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('(module (import "ic0" "call_new" (func)))', "ic0.call_new"),
        ('(module (import "env" "abort" (func)))', "env.abort"),
        ('(module (import "ic0" "time" (func (result i32))))', "another signature"),
        ('(module (func (export "canister_update x") (param i32)))', "no parameters"),
        ('(module (memory (export "canister_update x") 1))', "no parameters"),
        ('(module (func (export "canister_update x")) (func (export "canister_query x")))', "twice"),
        ('(module (func (export "canister_heartbeat")))', "not offer yet"),
        ('(module (func (export "canister_surprise")))', "reserved"),
        ("(module (memory 33))", "memory"),
        ('(module (memory 1) (data (i32.const 65536) "x"))', "out of bounds"),
        ("(module (memory 1 1 shared))", "threads"),
    ],
)
def test_modules_that_are_refused(world: World, text: str, words: str) -> None:
    rejected(world.install(world.create(), assemble(text)), "IC0505", words)


def test_bytes_that_are_no_module_are_refused(world: World) -> None:
    canister = world.create()
    rejected(world.install(canister, b"\x00asm"), "IC0505", "not a WebAssembly module")
    rejected(world.install(canister, b"\x00asm\x01\x00\x00\x00\x0a\x01\x01"), "IC0505", "not valid")


def test_a_64_bit_module(world: World) -> None:
    canister = world.installed(
        """(module
          (import "ic0" "msg_reply" (func $reply))
          (import "ic0" "msg_reply_data_append" (func $append (param i64 i64)))
          (memory i64 1) (data (i64.const 8) "wide")
          (func (export "canister_query go") (call $append (i64.const 8) (i64.const 4)) (call $reply)))"""
    )
    assert data(world.query(canister, "go")) == b"wide"


def test_inspect_message(world: World) -> None:
    canister = world.installed(
        """(module
          (import "ic0" "accept_message" (func $accept))
          (import "ic0" "msg_method_name_size" (func $size (result i32)))
          (import "ic0" "msg_reply" (func $reply))
          (func (export "canister_inspect_message")
            (if (i32.eq (call $size) (i32.const 2)) (then (call $accept))))
          (func (export "canister_update ok") (call $reply))
          (func (export "canister_update bad") (call $reply)))"""
    )
    world.chain.filter(world.make(canister, "ok", b"", STRANGER))
    with pytest.raises(RejectError, match="rejected the message"):
        world.chain.filter(world.make(canister, "bad", b"", STRANGER))
