"""From the bytes of a module to code that runs: checked, rewritten, compiled once, kept compiled.

Compiling takes long, the more so on an emulated processor. Compiled code is kept in the state directory
under the module's hash; its own hash lies in the database, and wasmtime looks at the compiler's version,
settings and processor. What doesn't match is compiled anew: reading code that somebody else compiled would be
running it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nodeos.core.files import write_atomic
from replica.engine import Engine
from replica.state import Code
from replica.store import Store
from replica.system_api import host_functions
from replica.wasm import MEMORY_EXPORT, WasmError, prepare

_ENTRIES = ("canister_init", "canister_pre_upgrade", "canister_post_upgrade", "canister_inspect_message")
# Exported under these names, they would silently never run.
_UNSUPPORTED = ("canister_heartbeat", "canister_global_timer", "canister_on_low_wasm_memory")
_KINDS = ("canister_update ", "canister_query ", "canister_composite_query ")
_MAX_METHODS = 1000


class Modules:
    """Makes Code of modules."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._known: dict[bytes, Code] = {}
        self._directory = store.directory / "compiled"
        self._used: set[str] = set()
        self._offered = {
            wide: {f.name: (f.parameters, (f.result,) if f.result else ()) for f in host_functions(wide)}
            for wide in (False, True)
        }

    def load(self, module: bytes) -> Code:
        """Check and compile. Raises WasmError with the reason why it can't be installed."""
        digest = hashlib.sha256(module).digest()
        if digest not in self._known:
            self._known[digest] = self._load(module, digest)
        return self._known[digest]

    def drop_unused(self) -> None:
        """Delete compiled modules that nothing has loaded since this object was made."""
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if path.name not in self._used:
                    path.unlink()
        self._store.keep_compiled(self._used)

    def _load(self, module: bytes, digest: bytes) -> Code:
        prepared = prepare(module)
        compiled = self._compiled(prepared.code)
        wide = _is_wide(compiled)
        self._check_imports(compiled, wide)
        return Code(
            module_hash=digest,
            compiled=compiled,
            wide=wide,
            globals=prepared.globals,
            memory=prepared.memory,
            start=prepared.start,
            certified=any(item.name == "data_certificate_copy" for item in compiled.imports),
            methods=_methods(compiled),
            metadata=prepared.metadata,
        )

    def _compiled(self, code: bytes) -> Any:
        # The rewritten code is what is compiled, so its hash is the name: another rewriting is another name.
        name = hashlib.sha256(code).hexdigest()
        self._used.add(name)
        path = self._directory / name
        expected = self._store.compiled(name)
        if expected is not None and path.exists():
            kept = path.read_bytes()
            if hashlib.sha256(kept).digest() == expected:
                module = self._engine.load(kept)
                if module is not None:
                    return module
        module = self._engine.compile(code)
        serialized = bytes(module.serialize())
        write_atomic(path, serialized, mode=0o600)
        self._store.record_compiled(name, hashlib.sha256(serialized).digest())
        return module

    def _check_imports(self, compiled: Any, wide: bool) -> None:
        for item in compiled.imports:
            name = f"{item.module}.{item.name}"
            signature = self._offered[wide].get(item.name or "") if item.module == "ic0" else None
            if signature is None:
                raise WasmError(f"it imports {name}, which this replica does not offer")
            found = tuple(str(t) for t in item.type.params), tuple(str(t) for t in item.type.results)
            if found != signature:
                raise WasmError(f"it imports {name} with another signature than it has")


def _is_wide(compiled: Any) -> bool:
    return any(item.name == MEMORY_EXPORT and item.type.is_64 for item in compiled.exports)


def _methods(compiled: Any) -> frozenset[str]:
    """The exported entry points. Raises WasmError for one that can't be, or that stands twice."""
    names: set[str] = set()
    for item in compiled.exports:
        name = item.name
        if not name.startswith("canister_"):
            continue
        if name in _UNSUPPORTED:
            raise WasmError(f"it exports {name}, which this replica does not offer yet")
        kind = next((kind for kind in _KINDS if name.startswith(kind)), None)
        if kind is None and name not in _ENTRIES:
            raise WasmError(f"it exports {name!r}, which is reserved")
        # A memory or a table has no parameters at all.
        if getattr(item.type, "params", None) != [] or item.type.results != []:
            raise WasmError(f"its export {name!r} must have no parameters and no results")
        method = name if kind is None else f"method {name.removeprefix(kind)}"
        if method in names:
            raise WasmError(f"it exports {method!r} twice")
        names.add(method)
    if len(names) > _MAX_METHODS:
        raise WasmError(f"more than {_MAX_METHODS} methods")
    return frozenset(item.name for item in compiled.exports if item.name.startswith("canister_"))
