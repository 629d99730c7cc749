"""The main job: from nothing to a node whose canister answers, and the same after a power cycle."""

from __future__ import annotations

import pytest

from tests.vm.conftest import Demo
from tests.vm.lab import table_of

pytestmark = pytest.mark.vm


def test_every_step_holds(demo: Demo) -> None:
    assert demo.code == 0, demo.summary["error"]
    assert demo.summary["held"] is True
    assert [step["title"] for step in demo.summary["steps"] if not step["held"]] == []
    assert len(demo.summary["steps"]) == 7


def test_quotes_are_what_the_build_predicted(demo: Demo) -> None:
    predicted = demo.summary["release"]["predicted_pcrs"]
    for boot in ("first_attestation", "second_attestation"):
        quoted = demo.summary["node"][boot]["pcrs"]
        assert quoted["4"] == predicted["4"]
        assert quoted["7"] == predicted["7"]
        assert quoted["11"] == predicted["11 after ready"]


def test_the_running_system_has_left_the_phase_that_may_unseal(demo: Demo) -> None:
    predicted = demo.summary["release"]["predicted_pcrs"]
    assert demo.summary["node"]["first_attestation"]["pcrs"]["11"] != predicted["11 after enter-initrd"]


def test_state_is_sealed_to_signed_policies(demo: Demo) -> None:
    for boot in ("first_attestation", "second_attestation"):
        volume = demo.summary["node"][boot]["volume"]
        assert volume["policy_pcrs"] == [7, 11, 12, 13, 15]
        assert len(volume["policy_keys"]) == 1
        assert volume["creation_proven"] is True


def test_the_volume_and_the_counter_outlive_a_power_cycle(demo: Demo) -> None:
    first, second = (demo.summary["node"][name] for name in ("first_attestation", "second_attestation"))
    assert first["volume"]["made_this_boot"] is True
    assert second["volume"]["made_this_boot"] is False
    assert first["volume"]["luks_uuid"] == second["volume"]["luks_uuid"]
    assert first["boot_id"] != second["boot_id"]
    # PCR 15 holds the measured volume key.
    assert first["pcrs"]["15"] == second["pcrs"]["15"] != "00" * 32
    assert demo.summary["canister"]["counter_after_reboot"] == demo.summary["canister"]["counter"] == 2


def test_before_the_induction_nobody_gets_in(demo: Demo) -> None:
    """Silence, where a machine without a firewall refuses at once: nothing listens yet."""
    ports = demo.summary["ports"]["before_induction"]
    assert ports == {"8080": "silent", "22": "silent", "2497": "silent", "4100": "silent", "5355": "silent"}


def test_an_inducted_node_is_reachable_for_its_clients_and_for_nothing_else(demo: Demo) -> None:
    ports = dict(demo.summary["ports"]["inducted"])
    assert ports.pop("8080") == "answers"
    assert set(ports.values()) == {"silent"}
    assert set(ports) == {"22", "2497", "4100", "5355"}


def test_nothing_readable_is_on_the_disk(demo: Demo) -> None:
    """What the node wrote must not be found by a person who takes the disk. The system itself is no secret."""
    node_id = demo.summary["node"]["node_id"].encode()
    words = [b"nodeos-replica", b"node.json", b"committee.hex", b"PRIVATE KEY", b"SQLite format 3"]
    [state] = [part for part in table_of(demo.machine.disk).partitions if part.label == "nodeos-state"]
    longest = max(map(len, [node_id, *words]))
    tail = b""
    with demo.machine.disk.open("rb") as file:
        while chunk := file.read(1 << 20):
            window = tail + chunk
            if window.count(0) != len(window):
                assert node_id not in window
                if file.tell() > state.start:
                    assert [word for word in words if word in window] == []
            tail = chunk[-longest:]
