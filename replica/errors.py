"""What a replica says when it doesn't do what was asked.

    NodeosError
    ├── HttpError      a request that isn't even looked at: 400, 403, 413, 429, 503
    └── RejectError    an answer of the Internet Computer: reject code, message, error code

Codes: interface specification, "Reject codes"; error codes as in the crate ic-error-types.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from nodeos.core.errors import NodeosError


class RejectCode(IntEnum):
    SYS_FATAL = 1
    SYS_TRANSIENT = 2
    DESTINATION_INVALID = 3
    CANISTER_REJECT = 4
    CANISTER_ERROR = 5


class ErrorCode(StrEnum):
    """Stable names that agents look at."""

    QUEUE_FULL = "IC0201"
    CANISTER_NOT_FOUND = "IC0301"
    TOO_MANY_CANISTERS = "IC0102"
    REJECTED_MESSAGE = "IC0406"
    UNKNOWN_MANAGEMENT_METHOD = "IC0407"
    INVALID_PAYLOAD = "IC0408"
    TRAPPED = "IC0502"
    CALLED_TRAP = "IC0503"
    CONTRACT_VIOLATION = "IC0504"
    INVALID_WASM = "IC0505"
    DID_NOT_REPLY = "IC0506"
    OUT_OF_MEMORY = "IC0507"
    STOPPED = "IC0508"
    INVALID_CONTROLLER = "IC0512"
    NON_EMPTY = "IC0514"
    INSTRUCTION_LIMIT = "IC0522"
    TIME_LIMIT = "IC0528"
    METHOD_NOT_FOUND = "IC0536"
    NO_WASM_MODULE = "IC0537"


class HttpError(NodeosError):
    """A request that is refused before it gets a request id's life: ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RejectError(NodeosError):
    """A reject as the canister's caller sees it."""

    def __init__(self, code: RejectCode, error_code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.error_code = error_code


def canister_error(error_code: ErrorCode, message: str) -> RejectError:
    """A reject that the canister itself caused."""
    return RejectError(RejectCode.CANISTER_ERROR, error_code, message)
