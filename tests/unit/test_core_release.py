from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.release import Artefact, BootPhase, Release, Variant
from nodeos.core.wire import ParseError

DIGEST = st.binary(min_size=32, max_size=32)
RELEASES = st.builds(
    Release,
    version=st.text(max_size=64),
    variant=st.sampled_from(Variant),
    root_hash=DIGEST,
    kernel_command_line=st.text(max_size=100),
    artefacts=st.dictionaries(
        st.text(max_size=20),
        st.builds(Artefact, size=st.integers(0, 2**62), sha256=DIGEST),
        max_size=3,
    ),
    pcrs=st.fixed_dictionaries({4: DIGEST, 7: DIGEST}),
    pcr11=st.fixed_dictionaries(dict.fromkeys(BootPhase, DIGEST)),
    source_commit=st.text(max_size=64),
)
EXAMPLE = Release(
    version="1.2.3",
    variant=Variant.RELEASE,
    root_hash=bytes(32),
    kernel_command_line="quiet",
    artefacts={"image.raw": Artefact(size=5, sha256=bytes(32))},
    pcrs={4: bytes(32), 7: bytes(32)},
    pcr11=dict.fromkeys(BootPhase, bytes(32)),
    source_commit="abc",
)


@given(RELEASES)
def test_round_trip(release: Release) -> None:
    assert Release.parse(release.to_bytes()) == release
    assert Release.parse(release.to_bytes()).to_bytes() == release.to_bytes()


@given(st.binary(max_size=200))
def test_parse_raises_nothing_but_parse_errors(data: bytes) -> None:
    with pytest.raises(ParseError):
        Release.parse(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 2, r"release\.json\.version"),
        (("variant",), "test", "'test' is not one of release, debug"),
        (("root_hash",), "00", "expected 32 bytes, found 1"),
        (("pcrs", "7"), None, r"release\.json\.pcrs\.7"),
        (("pcrs", "8"), "00" * 32, r"release\.json\.pcrs: unknown field: 8"),
        (("pcr11", "ready"), 1, r"release\.json\.pcr11\.ready: expected text"),
        (("pcr11", "late"), "00" * 32, "unknown field: late"),
        (("artefacts", "image.raw"), {"size": -1, "sha256": "00" * 32}, r"artefacts\.image\.raw\.size"),
        (("artefacts", "image.raw"), {"size": 1, "sha256": "00" * 32, "md5": ""}, "unknown field: md5"),
        (("signature",), "", "unknown field: signature"),
    ],
)
def test_each_wrong_field_is_named(path: tuple[str, ...], value: Any, words: str) -> None:
    document = json.loads(EXAMPLE.to_bytes())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ParseError, match=words):
        Release.parse(json.dumps(document).encode())
