"""Candid types of the management canister's methods (ic.did of the interface specification)."""

from __future__ import annotations

from replica.candid import (
    BLOB,
    BOOL,
    NAT,
    NAT64,
    NULL,
    PRINCIPAL,
    TEXT,
    Opt,
    Type,
    Vec,
    record,
    variant,
)

CANISTER_ID = record(canister_id=PRINCIPAL)
_LOG_VISIBILITY = variant(controllers=NULL, public=NULL, allowed_viewers=Vec(PRINCIPAL))
_ENVIRONMENT_VARIABLE = record(name=TEXT, value=TEXT)

CANISTER_SETTINGS = record(
    controllers=Opt(Vec(PRINCIPAL)),
    compute_allocation=Opt(NAT),
    memory_allocation=Opt(NAT),
    freezing_threshold=Opt(NAT),
    reserved_cycles_limit=Opt(NAT),
    log_visibility=Opt(_LOG_VISIBILITY),
    wasm_memory_limit=Opt(NAT),
    wasm_memory_threshold=Opt(NAT),
    environment_variables=Opt(Vec(_ENVIRONMENT_VARIABLE)),
)

INSTALL_CODE = record(
    mode=variant(
        install=NULL,
        reinstall=NULL,
        upgrade=Opt(
            record(
                skip_pre_upgrade=Opt(BOOL),
                wasm_memory_persistence=Opt(variant(keep=NULL, replace=NULL)),
            )
        ),
    ),
    canister_id=PRINCIPAL,
    wasm_module=BLOB,
    arg=BLOB,
    sender_canister_version=Opt(NAT64),
)

ARGUMENTS: dict[str, Type] = {
    "create_canister": record(settings=Opt(CANISTER_SETTINGS), sender_canister_version=Opt(NAT64)),
    "provisional_create_canister_with_cycles": record(
        amount=Opt(NAT),
        settings=Opt(CANISTER_SETTINGS),
        specified_id=Opt(PRINCIPAL),
        sender_canister_version=Opt(NAT64),
    ),
    "install_code": INSTALL_CODE,
    "uninstall_code": record(canister_id=PRINCIPAL, sender_canister_version=Opt(NAT64)),
    "update_settings": record(
        canister_id=PRINCIPAL, settings=CANISTER_SETTINGS, sender_canister_version=Opt(NAT64)
    ),
    "canister_status": CANISTER_ID,
    "start_canister": CANISTER_ID,
    "stop_canister": CANISTER_ID,
}

STATUS_RESULT = record(
    status=variant(running=NULL, stopping=NULL, stopped=NULL),
    ready_for_migration=BOOL,
    version=NAT64,
    settings=record(
        controllers=Vec(PRINCIPAL),
        compute_allocation=NAT,
        memory_allocation=NAT,
        freezing_threshold=NAT,
        reserved_cycles_limit=NAT,
        log_visibility=_LOG_VISIBILITY,
        wasm_memory_limit=NAT,
        wasm_memory_threshold=NAT,
        environment_variables=Vec(_ENVIRONMENT_VARIABLE),
    ),
    module_hash=Opt(BLOB),
    memory_size=NAT,
    cycles=NAT,
    reserved_cycles=NAT,
    idle_cycles_burned_per_day=NAT,
    query_stats=record(
        num_calls_total=NAT,
        num_instructions_total=NAT,
        request_payload_bytes_total=NAT,
        response_payload_bytes_total=NAT,
    ),
)
