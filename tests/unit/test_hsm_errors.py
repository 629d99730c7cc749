"""Response codes become errors that say what to do."""

from __future__ import annotations

import pytest

from hsm.errors import (
    TpmCredentialError,
    TpmError,
    TpmLockoutError,
    TpmMissingError,
    TpmPasswordError,
    TpmPolicyError,
    tpm_error,
)
from hsm.pkcs11 import check_pin_flags, tries_left
from nodeos.core.errors import NodeosError


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0x921, TpmLockoutError),
        (0x9A2, TpmPasswordError),
        (0x98E, TpmPasswordError),
        (0x99D, TpmPolicyError),
        (0x1DF, TpmCredentialError),
        (0x902, TpmError),
        (0x903, TpmError),
        (0x907, TpmError),
        (0x101, TpmError),
        (0x18B, TpmError),
        # The same through the kernel's resource manager (layers 11 and 12).
        (0x0B0921, TpmLockoutError),
        (0x0C0902, TpmError),
    ],
)
def test_known_answers(code: int, kind: type[TpmError]) -> None:
    error = tpm_error(code, "quoting", "words")
    assert type(error) is kind
    assert isinstance(error, NodeosError)
    assert error.message.startswith("quoting: ")
    assert f"0x{code & 0xFFFF:x}" in error.message
    assert error.response_code == code & 0xFFFF
    assert error.hint


def test_unknown_answer_keeps_the_words() -> None:
    error = tpm_error(0x1C4, "quoting", "value is out of range")
    assert type(error) is TpmError
    assert "value is out of range (0x1c4)" in error.message
    assert error.response_code == 0x1C4


def test_lost_connection() -> None:
    error = tpm_error(0xA000A, "quoting", "IO failure")
    assert type(error) is TpmMissingError
    assert error.hint


def test_other_layers_are_no_answers_of_the_tpm() -> None:
    """0x70921 would be an ESAPI code that happens to end like a lockout."""
    assert type(tpm_error(0x70921, "quoting", "words")) is TpmError


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (0x10000, "at least one try"),
        (0x30000, "ONE try"),
        (0x70000, "locked"),
        (0x0040D, "does not tell"),
    ],
)
def test_tries_left(flags: int, words: str) -> None:
    assert words in tries_left(flags)


@pytest.mark.parametrize(("flags", "words"), [(0x20000, "no PIN was sent"), (0x40000, "the PIN is locked")])
def test_no_pin_is_sent_to_a_token_that_it_could_lock(flags: int, words: str) -> None:
    from hsm.errors import TokenPinError

    with pytest.raises(TokenPinError, match=words) as caught:
        check_pin_flags(flags, "operator")
    assert caught.value.hint


@pytest.mark.parametrize("flags", [0, 0x10000, 0x40D])
def test_usable_pin(flags: int) -> None:
    check_pin_flags(flags, "operator")
