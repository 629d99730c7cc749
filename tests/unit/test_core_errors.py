from __future__ import annotations

import pytest

from nodeos.core.errors import Finding, NodeosError, RefusedError, ToolError, UnreachableError, UsageError


def test_the_hint_is_shown() -> None:
    assert str(NodeosError("it broke", hint="mend it")) == "it broke\n  → mend it"
    assert str(NodeosError("it broke")) == "it broke"


def test_exit_codes() -> None:
    codes = [kind("x").exit_code for kind in (NodeosError, UsageError, ToolError, UnreachableError)]
    assert codes == [1, 2, 1, 1]
    assert RefusedError("no", (Finding(code="a", message="b"),)).exit_code == 3


def test_a_refusal_shows_every_finding() -> None:
    findings = (Finding(code="a.b", message="one"), Finding(code="c", message="two"))
    error = RefusedError("no", findings, hint="h")
    assert str(error) == "no\n  ✗ a.b: one\n  ✗ c: two\n  → h"
    assert error.findings == findings


def test_a_refusal_without_a_finding_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RefusedError("no", ())
