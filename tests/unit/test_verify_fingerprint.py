"""Fingerprint reports: form, and every rule of a profile broken alone."""

from __future__ import annotations

import re
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeos.core.errors import UsageError
from nodeos.core.wire import ParseError
from provisioning.verify.findings import Result, Verdict
from provisioning.verify.fingerprint import parse_report
from provisioning.verify.profile import check_fingerprint, load_profile, parse_profile
from tests.support import evidence as ev
from tests.support.vectors import vectors


def changed(**changes: Any) -> dict[str, Any]:
    """The good inventory with changes; ``cpu__model=...`` reaches into a part."""
    inventory = dict(ev.inventory())
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            inner = dict(inventory[part])  # type: ignore[call-overload]
            inner[name] = value
            inventory[part] = inner
        else:
            inventory[part] = value
    return inventory


def check(profile: str = "gen1", encryption: str = "active", **changes: Any) -> Verdict:
    return check_fingerprint(parse_report(ev.report(changed(**changes))), load_profile(profile), encryption)


def test_good_machine_passes() -> None:
    assert check().result is Result.PASSED
    assert check("dev").result is Result.PASSED


def disk(**changes: Any) -> dict[str, Any]:
    return {"model": "d", "bytes": 6_400_000_000_000, "transport": "nvme", "rotational": False, **changes}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("fingerprint.cpu_model", {"cpu__model": "AMD EPYC 7313 16-Core Processor"}),
        ("fingerprint.cpu_sockets", {"cpu__sockets": 1}),
        ("fingerprint.cpu_threads", {"cpu__threads": 63}),
        ("fingerprint.cpu_flags", {"cpu__flags": ["svm"]}),
        ("fingerprint.memory", {"memory": {"bytes": 547_608_330_239, "dimms": []}}),
        ("fingerprint.disk_count", {"disks": [disk(bytes=8_000_000_000_000)] * 4}),
        ("fingerprint.disk_bytes", {"disks": [disk(bytes=6_399_999_999_999)] * 5}),
        ("fingerprint.nics", {"nics": []}),
        ("fingerprint.nics", {"nics": [{"driver": "x", "speed_mbit": 1000, "pci": "0"}]}),
        ("fingerprint.nics", {"nics": [{"driver": "x", "speed_mbit": None, "pci": "0"}]}),
        ("fingerprint.virtualization", {"virtualization": "kvm"}),
    ],
)
def test_each_rule_refuses_alone(code: str, changes: dict[str, Any]) -> None:
    verdict = check(**changes)
    assert verdict.result is Result.REFUSED
    assert [f.code for f in verdict.findings] == [code]
    assert "found" in verdict.findings[0].message or "missing" in verdict.findings[0].message


@pytest.mark.parametrize("odd", [{"transport": "sata"}, {"rotational": True}])
def test_disks_of_another_kind_do_not_count(odd: dict[str, Any]) -> None:
    extra = disk(**odd)
    assert check(disks=[disk()] * 5 + [extra]).result is Result.PASSED
    codes = [f.code for f in check(disks=[disk()] * 4 + [extra] * 2).findings]
    assert codes == ["fingerprint.disk_count", "fingerprint.disk_bytes"]


def test_what_is_watched() -> None:
    for verdict, code in (
        (check(encryption="absent"), "fingerprint.memory_encryption"),
        (check(memory__bytes=400 << 30), "fingerprint.memory_usable"),
    ):
        assert verdict.result is Result.WATCH
        assert [f.code for f in verdict.findings] == [code]


def test_a_small_memory_may_lack_what_the_kernel_keeps() -> None:
    small = {"bytes": 2_031_206_400, "dimms": [{"size": 2 << 30, "part": "", "manufacturer": "QEMU"}]}
    report = parse_report(ev.report(changed(memory=small)))
    assert check_fingerprint(report, load_profile("dev"), "unknown").result is Result.PASSED
    report = parse_report(ev.report(changed(memory={**small, "bytes": (2 << 30) - (257 << 20)})))
    codes = [f.code for f in check_fingerprint(report, load_profile("dev"), "unknown").findings]
    assert codes == ["fingerprint.memory_usable"]


def test_virtual_machine_passes_dev_and_fails_gen1() -> None:
    small = changed(
        cpu={"model": "QEMU Virtual CPU", "sockets": 1, "cores": 2, "threads": 2, "flags": []},
        memory={"bytes": 2 << 30, "dimms": []},
        disks=[{"model": "", "bytes": 8 << 30, "transport": "virtio", "rotational": True}],
        nics=[{"driver": "virtio_net", "speed_mbit": None, "pci": "0000:00:02.0"}],
        virtualization="qemu",
    )
    parsed = parse_report(ev.report(small))
    assert check_fingerprint(parsed, load_profile("dev"), "unknown").result is Result.PASSED
    assert len(check_fingerprint(parsed, load_profile("gen1"), "unknown").findings) > 6


def measurement(**changes: Any) -> dict[str, Any]:
    return {"unit": "ns", "n": 100, "min": 5, "quantiles": list(range(10, 43)), **changes}


PROFILE = """
name = "t"
reward_types = []
virtualization = []
[cpu]
models = []
min_sockets = 0
min_threads = 0
flags = []
[memory]
min_bytes = 0
encryption = false
[disks]
min_count = 0
min_total_bytes = 0
transports = []
rotational = true
[nics]
min_count = 0
min_speed_mbit = 0
[measurements.latency]
unit = "ns"
min_median = 20
max_median = 30
"""


@pytest.mark.parametrize(
    ("code", "measured"),
    [
        (None, measurement()),
        ("fingerprint.median", measurement(quantiles=list(range(15, 48)))),
        ("fingerprint.median", measurement(quantiles=list(range(2, 35)), min=0)),
        (None, measurement(quantiles=list(range(14, 47)))),
        ("fingerprint.unit", measurement(unit="us")),
        ("fingerprint.measurement", {"unit": "ns", "n": 0, "min": 0, "invalid": "noisy"}),
    ],
)
def test_limits_on_measurements(code: str | None, measured: dict[str, Any]) -> None:
    report = parse_report(ev.report(measurements={"latency": measured}))
    found = check_fingerprint(report, parse_profile(PROFILE, "t.toml"), "").findings
    assert [f.code for f in found] == ([code] if code else [])


def test_missing_measurement_refuses_and_an_extra_invalid_one_is_watched() -> None:
    profile = parse_profile(PROFILE, "t.toml")
    missing = check_fingerprint(parse_report(ev.report()), profile, "")
    assert [f.code for f in missing.findings] == ["fingerprint.measurement"]
    report = parse_report(ev.report(measurements={"other": {"unit": "ns", "n": 0, "invalid": "no timer"}}))
    assert check_fingerprint(report, load_profile("gen1"), "active").result is Result.WATCH


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (measurement(quantiles=[1] * 32), "33 quantiles"),
        (measurement(quantiles=list(range(33, 0, -1)), min=0), "rising order"),
        (measurement(min=11), "larger than the lowest quantile"),
        (measurement(quantiles=[-1] * 33), r"quantiles\[0\]"),
        (measurement(n=0), "samples"),
        (measurement(extra=1), "unknown field: extra"),
        ([], "expected an object"),
    ],
)
def test_malformed_measurements(measured: object, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_report(ev.report(measurements={"m": measured}))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"cpu__threads": "64"}, "inventory.cpu.threads"),
        ({"cpu__flags": [1]}, r"inventory.cpu.flags\[0\]"),
        ({"disks": [disk(bytes=-1)]}, r"inventory.disks\[0\].bytes"),
        ({"disks": [disk(rotational=1)]}, r"inventory.disks\[0\].rotational"),
        ({"nics": [{"driver": 1, "speed_mbit": 1, "pci": ""}]}, r"inventory.nics\[0\].driver"),
        ({"memory": {"bytes": 1}}, "inventory.memory.dimms"),
        ({"virtualization": None}, "inventory.virtualization"),
    ],
)
def test_wrong_types_are_refused_with_their_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ParseError, match=path):
        parse_report(ev.report(changed(**changes)))


def test_further_inventory_is_let_through() -> None:
    assert parse_report(
        ev.report(changed(bmc={"vendor": "x"}, cpu__microcode="0x1", disks=[disk(serial="1")]))
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not CBOR"),
        (b"\xff", "not CBOR"),
        (ev.report() + b"\0", "canonical"),
        (cbor2.dumps({"version": 1, "measurements": {}, "inventory": {}}), "canonical"),
        (cbor2.dumps({"a": 1.5}, canonical=True), "float is not allowed"),
        (cbor2.dumps({1: 1}, canonical=True), "a key is not text"),
        (b"\xc1\x01", "datetime is not allowed"),
        (b"\x81" * 20 + b"\x01", "nested too deeply"),
        (b"\x81" * 8000, "not CBOR"),
        (bytes(9000), "at most 8192"),
        (b"\x01", "expected an object"),
    ],
)
def test_form_of_the_report(raw: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        parse_report(raw)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_noise_raises_only_parse_errors(data: bytes) -> None:
    with pytest.raises(ParseError):
        parse_report(data)


_GOOD = ev.report(measurements={"latency": measurement()})


@given(st.integers(0, len(_GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_damaged_report_raises_only_parse_errors(at: int, value: int) -> None:
    damaged = bytearray(_GOOD)
    damaged[at] = value
    try:
        check_fingerprint(parse_report(bytes(damaged)), load_profile("gen1"), "active")
    except ParseError:
        return


def test_unknown_profile_and_malformed_profile() -> None:
    with pytest.raises(UsageError, match="no profile 'gen9'"):
        load_profile("gen9")
    with pytest.raises(ParseError, match="unknown field: odd"):
        parse_profile(PROFILE.replace('name = "t"', 'name = "t"\nodd = 1'), "t.toml")


def _dmi_memory(text: str) -> int:
    """Bytes of all memory devices in a dmidecode dump."""
    units = {"MB": 1 << 20, "GB": 1 << 30}
    sizes = re.findall(r"^\tSize: (\d+) (MB|GB)$", text.partition("Memory Device\n")[2], re.M)
    return sum(int(size) * units[unit] for size, unit in sizes)


@pytest.mark.parametrize(("dump", "fits"), [("FFBAD7145460", True), ("CD7B912FA9C9", False)])
def test_processors_and_memory_of_real_machines(dump: str, fits: bool) -> None:
    """A Dell R7525 with two EPYC 7302 meets gen1; a Supermicro with one does not."""
    text = (vectors("dmi") / f"{dump}.dmi").read_text(errors="replace")
    models = re.findall(r"^\tVersion: (AMD EPYC.*?) *$", text, re.M)
    threads = sum(int(count) for count in re.findall(r"^\tThread Count: (\d+)", text, re.M))
    cpu = {
        "model": models[0],
        "sockets": len(models),
        "cores": 0,
        "threads": threads,
        "flags": ["svm", "sev"],
    }
    verdict = check(cpu=cpu, memory={"bytes": _dmi_memory(text), "dimms": []})
    assert (verdict.result is Result.PASSED) == fits, verdict.findings
