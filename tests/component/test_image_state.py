"""The initrd's script that decides which disk gets the state volume, and with that which disk is erased."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from nodeos.core.run import find_tool, run
from tests.support.disks import BOUND, ESP_UUID, GIB, STATE_TYPE, Outcome, World, write_at

MIB = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "machine")


def first_mib(disk: Path) -> bytes:
    with disk.open("rb") as file:
        return file.read(MIB)


def handed_over(world: World) -> object:
    return json.loads((world.run_directory / "state.json").read_text())


def assert_nothing_made(outcome: Outcome) -> None:
    assert outcome.called("systemd-repart") == []
    assert outcome.called("systemd-cryptsetup") == []


def test_first_boot_takes_the_largest_empty_disk(world: World) -> None:
    world.boot_disk(size=9 * GIB)
    world.disk("vdb", 2 * GIB)
    largest = world.disk("vdc", 3 * GIB)
    outcome = world.outcome()
    assert outcome.code == 0, outcome.words
    [repart] = outcome.called("systemd-repart")
    assert repart[-1] == str(largest)
    assert {"--empty=require", "--tpm2-public-key-pcrs=11", "--tpm2-pcrs=7"} < set(repart)
    assert f"--tpm2-public-key={world.key}" in repart
    [attach] = outcome.called("systemd-cryptsetup")
    assert attach[:4] == ["attach", "state", f"{largest}1", "-"]
    assert f"tpm2-signature={world.signature}" in attach[4].split(",")
    expected = {"made_this_boot": True, "luks_uuid": "the-uuid", "device": f"{largest}1"}
    assert handed_over(world) == expected


def test_second_boot_opens_it_and_makes_nothing(world: World) -> None:
    world.boot_disk()
    disk = world.disk("vdb")
    world.partition(disk, PARTTYPE=STATE_TYPE)
    world.disk("vdc", 8 * GIB)
    outcome = world.outcome()
    assert outcome.code == 0, outcome.words
    assert outcome.called("systemd-repart") == []
    expected = {"made_this_boot": False, "luks_uuid": "the-uuid", "device": f"{disk}1"}
    assert handed_over(world) == expected


def test_disks_of_equal_size_in_the_order_of_their_names(world: World) -> None:
    world.boot_disk("nvme9n1")
    for name in ("nvme10n1", "nvme2n1", "nvme0n1"):
        world.disk(name)
    names = [line.split("/")[-1] for line in world.outcome("disks").words.splitlines()]
    assert names == ["nvme0n1", "nvme2n1", "nvme10n1"]


@pytest.mark.parametrize(
    "columns", [{"RM": 1}, {"RO": 1}, {"TYPE": "rom"}, {"TYPE": "raid1"}, {"TYPE": "loop"}]
)
def test_disk_that_never_gets_the_state(world: World, columns: dict[str, object]) -> None:
    world.boot_disk()
    world.disk("vdb", 8 * GIB, **columns)
    assert world.outcome("disks").words == ""
    outcome = world.outcome()
    assert_nothing_made(outcome)
    assert "no disk of at least 1 GiB beside the boot disk" in outcome.words


@pytest.mark.parametrize("name", ["loop0", "ram0", "zram0", "dm-0", "sr0"])
def test_device_that_is_no_disk(world: World, name: str) -> None:
    world.boot_disk()
    world.disk(name, 8 * GIB)
    assert world.outcome("disks").words == ""


def test_small_disk(world: World) -> None:
    world.boot_disk()
    world.disk("vdb", GIB - 512)
    assert world.outcome("disks").words == ""


def test_boot_disk_never_even_if_it_looks_empty(world: World) -> None:
    world.boot_disk(size=16 * GIB)
    outcome = world.outcome()
    assert_nothing_made(outcome)


def test_copy_of_the_medium_on_a_second_disk(world: World) -> None:
    world.boot_disk()
    world.boot_disk("vdb", 16 * GIB)
    other = world.disk("vdc")
    assert world.outcome("disks").words == f"{2 * GIB} {other}\n"


@pytest.mark.parametrize(
    "booted_from", [None, "", "no-uuid-at-all", "6b1c7f3e-0d5a-4c39-9f2e-5a1f0c9d7e12", f"{ESP_UUID}0"]
)
def test_unknown_boot_disk_ends_it(world: World, booted_from: str | None) -> None:
    world.boot_disk()
    world.disk("vdb")
    outcome = world.outcome(booted_from=booted_from)
    assert outcome.code == 1
    assert "the disk that this system was started from can't be told" in outcome.words
    assert_nothing_made(outcome)


def test_unknown_boot_disk_ends_it_beside_a_state_volume_too(world: World) -> None:
    world.partition(world.disk("vdb"), PARTTYPE=STATE_TYPE)
    outcome = world.outcome()
    assert outcome.code == 1
    assert_nothing_made(outcome)


def test_boot_partition_without_a_disk_is_no_answer(world: World) -> None:
    # A volume that shows the partition's UUID but lies on no disk.
    world.disk("vdb", PARTUUID=ESP_UUID)
    outcome = world.outcome()
    assert outcome.code == 1
    assert_nothing_made(outcome)


def test_disks_that_cannot_be_listed(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    world.breaks("lsblk-fails")
    assert world.outcome().code == 1
    assert world.outcome("find_state").code == 1
    assert_nothing_made(world.outcome())


def gpt(disk: Path, *, backup_only: bool = False) -> None:
    """An empty partition table, with its checksums right: at both ends of the disk or at the end only."""
    sectors = disk.stat().st_size // 512
    entries = bytes(128 * 128)
    for mine, other, table in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 33)):
        header = struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, mine, other, 34, sectors - 34,
            bytes(range(16)), table, 128, 128, zlib.crc32(entries),
        )  # fmt: skip
        header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
        if mine != 1 or not backup_only:
            write_at(disk, mine * 512, header)
    if not backup_only:
        write_at(disk, 510, b"\x55\xaa")
        write_at(disk, 446, b"\0\0\x02\0\xee\xff\xff\xff\x01\0\0\0" + struct.pack("<I", 0xFFFFFFFF))


def test_empty_disk_is_empty(world: World) -> None:
    disk = world.disk("vdb", 64 * MIB)
    assert world.outcome(f"is_empty {disk} {64 * MIB}").code == 0


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"\x01"),
        (MIB - 1, b"\x01"),
        (-1, b"\x01"),
        (-MIB, b"\x01"),
        (510, b"\x55\xaa"),
        (0, b"LUKS\xba\xbe\x00\x02"),
        (-4096, struct.pack("<I", 0xA92B4EFC)),
    ],
    ids=["first", "end of first MiB", "last", "begin of last MiB", "MBR", "LUKS", "MD at the end"],
)
def test_data_at_an_end_of_the_disk(world: World, offset: int, data: bytes) -> None:
    disk = world.disk("vdb", 64 * MIB)
    write_at(disk, offset, data)
    assert world.outcome(f"is_empty {disk} {64 * MIB}").code != 0


@pytest.mark.parametrize("backup_only", [False, True])
def test_partition_table(world: World, backup_only: bool) -> None:
    disk = world.disk("vdb", 64 * MIB)
    gpt(disk, backup_only=backup_only)
    assert world.outcome(f"is_empty {disk} {64 * MIB}").code != 0


def test_file_system(world: World) -> None:
    disk = world.disk("vdb", 64 * MIB)
    run([find_tool("mkfs.ext4", package="e2fsprogs"), "-q", "-F", disk], what="making a file system")
    assert world.outcome(f"is_empty {disk} {64 * MIB}").code != 0


def test_signature_between_the_ends(world: World) -> None:
    # btrfs beyond the first MiB's zeroes would be rare; ZFS labels and LUKS2's second header are found further in.
    disk = world.disk("vdb", 64 * MIB)
    second = b"SKUL\xba\xbe\x00\x02" + (4 * MIB).to_bytes(8, "big")
    write_at(disk, 4 * MIB, second.ljust(256, b"\0") + (4 * MIB).to_bytes(8, "big"))
    assert world.outcome(f"is_empty {disk} {64 * MIB}").code != 0


def test_disk_that_cannot_be_opened_is_not_empty(world: World) -> None:
    assert world.outcome(f"is_empty {world.directory}/dev/gone {2 * GIB}").code != 0


def test_disk_that_is_shorter_than_it_says_is_not_empty(world: World) -> None:
    disk = world.disk("vdb", 64 * MIB)
    assert world.outcome(f"is_empty {disk} {128 * MIB}").code != 0


def test_first_boot_that_was_cut_off_is_repeated(world: World) -> None:
    # systemd-repart writes the partition table last: the LUKS header is there, no table.
    world.boot_disk()
    disk = world.disk("vdb")
    write_at(disk, MIB, b"LUKS\xba\xbe\x00\x02")
    write_at(disk, 20 * MIB, b"\x5a" * 4096)
    outcome = world.outcome()
    assert outcome.code == 0, outcome.words
    [repart] = outcome.called("systemd-repart")
    assert repart[-1] == str(disk)


def test_foreign_data_is_left_alone_and_named(world: World) -> None:
    world.boot_disk()
    disk = world.disk("vdb", FSTYPE="ext4", LABEL="photos")
    write_at(disk, 1080, b"\x53\xef")
    raw = world.disk("vdc")
    write_at(raw, 0, b"something")
    before = {path: first_mib(path) for path in (disk, raw)}
    outcome = world.outcome()
    assert_nothing_made(outcome)
    assert f"{disk} (ext4 photos)" in outcome.words
    assert f"{raw} (data without a file system)" in outcome.words
    assert outcome.words.count("Foreign data, left alone") == 1, "said once, not at every look"
    assert {path: first_mib(path) for path in before} == before


def test_disk_that_cannot_be_read_is_named(world: World) -> None:
    world.boot_disk()
    world.disk("vdb").unlink()
    outcome = world.outcome()
    assert_nothing_made(outcome)
    assert "vdb (can't be read)" in outcome.words


def test_largest_disk_is_foreign_the_next_is_taken(world: World) -> None:
    world.boot_disk()
    write_at(world.disk("vdb", 8 * GIB), 0, b"x")
    empty = world.disk("vdc", 2 * GIB)
    [repart] = world.outcome().called("systemd-repart")
    assert repart[-1] == str(empty)


def test_disk_erased_while_it_waits(world: World) -> None:
    world.boot_disk()
    disk = world.disk("vdb")
    write_at(disk, 0, b"x")
    world.when_it_waits(f"if times == 2: open({str(disk)!r}, 'r+b').write(bytes(1))", end_after=9)
    outcome = world.outcome()
    assert outcome.code == 0, outcome.words
    assert len(outcome.called("systemd-repart")) == 1


def test_state_volume_that_appears_late_wins_over_an_empty_disk(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    late = str(world.directory / "dev/vdc")
    rows = [
        {"NAME": late, "TYPE": "disk", "RM": 0, "RO": 0, "SIZE": GIB},
        {"NAME": f"{late}1", "TYPE": "part", "PKNAME": late, "PARTTYPE": STATE_TYPE},
    ]
    table = "here / 'table.json'"
    world.when_it_waits(
        f"if times == 1: ({table}).write_text(json.dumps(json.loads(({table}).read_text()) + {rows!r}))"
    )
    outcome = world.outcome()
    assert outcome.code == 0, outcome.words
    assert outcome.called("systemd-repart") == []
    assert f'"device": "{late}1"' in (world.run_directory / "state.json").read_text()


def test_never_a_second_volume_when_udev_is_late(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    world.disk("vdc")
    world.breaks("udev-is-late")
    outcome = world.outcome()
    assert len(outcome.called("systemd-repart")) == 1
    assert "waiting for the new state volume to appear" in outcome.words


def test_two_state_volumes(world: World) -> None:
    world.boot_disk()
    for name in ("vdb", "vdc"):
        world.partition(world.disk(name), PARTTYPE=STATE_TYPE)
    outcome = world.outcome()
    assert outcome.code == 1
    assert "more than one disk carries a state volume" in outcome.words
    assert "vdb1" in outcome.words
    assert "vdc1" in outcome.words
    assert_nothing_made(outcome)


@pytest.mark.parametrize("columns", [{"RM": 1}, {"RO": 1}, {"PARTUUID": "other"}])
def test_state_volume_where_it_may_not_be(world: World, columns: dict[str, object]) -> None:
    boot = world.boot_disk()
    disk = boot if "PARTUUID" in columns else world.disk("vdb", 2 * GIB, **columns)
    world.partition(disk, PARTTYPE=STATE_TYPE)
    world.disk("vdc")
    outcome = world.outcome()
    assert outcome.code == 1
    assert "is on a disk that may not carry the state" in outcome.words
    assert_nothing_made(outcome)


def test_no_policy_key_no_volume(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    world.key.write_bytes(b"")
    outcome = world.outcome()
    assert outcome.code == 1
    assert "this image carries no PCR policy key" in outcome.words
    assert_nothing_made(outcome)


def test_volume_that_cannot_be_made(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    world.breaks("repart-fails")
    outcome = world.outcome()
    assert outcome.code == 1
    assert "Failed to seal to TPM2: lockout" in outcome.words
    assert "could not be made" in outcome.words
    assert outcome.called("systemd-cryptsetup") == []


PCR11 = "\ttpm2-pubkey-pcrs: 11\n"
PCR7 = "\ttpm2-hash-pcrs:   7\n"
TOKEN = BOUND[BOUND.index("  0: systemd-tpm2") : BOUND.index("Digests")]


@pytest.mark.parametrize(
    "header",
    [
        BOUND.replace(PCR11, ""),
        BOUND.replace(PCR11, "\ttpm2-pubkey-pcrs: n/a\n"),
        BOUND.replace(PCR11, "\ttpm2-pubkey-pcrs: 11+12\n"),
        BOUND.replace(PCR11, "\ttpm2-pubkey-pcrs: 1\n"),
        BOUND.replace(PCR7, ""),
        BOUND.replace(PCR7, "\ttpm2-hash-pcrs:   n/a\n"),
        BOUND.replace(PCR7, "\ttpm2-hash-pcrs:   17\n"),
        BOUND.replace(TOKEN, ""),
        BOUND.replace(TOKEN, TOKEN + TOKEN.replace("0: ", "1: ").replace(PCR11, "")),
        BOUND.replace(TOKEN, TOKEN.replace(PCR7, "") + TOKEN.replace("0: ", "1: ").replace(PCR11, "")),
    ],
    ids=["no PCR 11", "none signed", "11 and 12", "PCR 1", "no PCR 7", "none literal", "PCR 17", "no token",
         "weaker second token", "split over two"],
)  # fmt: skip
def test_volume_with_another_binding(world: World, header: str) -> None:
    world.boot_disk()
    world.partition(world.disk("vdb"), PARTTYPE=STATE_TYPE)
    world.header.write_text(header)
    outcome = world.outcome()
    assert outcome.code == 1
    assert "is not bound to PCR 7 and to a signed policy for PCR 11" in outcome.words
    assert outcome.called("systemd-cryptsetup") == []


def test_binding_is_checked_on_a_new_volume_too(world: World) -> None:
    world.boot_disk()
    world.disk("vdb")
    world.header.write_text(BOUND.replace(PCR11, ""))
    outcome = world.outcome()
    assert outcome.code == 1
    assert len(outcome.called("systemd-repart")) == 1
    assert outcome.called("systemd-cryptsetup") == []


def test_state_partition_without_a_volume(world: World) -> None:
    world.boot_disk()
    world.partition(world.disk("vdb"), PARTTYPE=STATE_TYPE)
    world.header.unlink()
    outcome = world.outcome()
    assert outcome.code == 1
    assert "is not a LUKS2 volume" in outcome.words
    assert_nothing_made(outcome)


def test_image_without_a_signature(world: World) -> None:
    world.boot_disk()
    world.partition(world.disk("vdb"), PARTTYPE=STATE_TYPE)
    world.signature.unlink()
    outcome = world.outcome()
    assert outcome.code == 1
    assert "carries no signature for PCR 11" in outcome.words
    assert_nothing_made(outcome)


def test_locked_volume_says_why_and_hands_nothing_over(world: World) -> None:
    world.boot_disk()
    world.partition(world.disk("vdb"), PARTTYPE=STATE_TYPE)
    world.breaks("systemd-cryptsetup-fails")
    outcome = world.outcome()
    assert outcome.code == 1
    for reason in ("Secure Boot state or keys changed", "locked out", "another machine"):
        assert reason in outcome.words
    assert "put the earlier release or keys back" in outcome.words
    assert not (world.run_directory / "state.json").exists()
    assert outcome.called("systemd-repart") == []


def test_sourcing_does_nothing(world: World) -> None:
    outcome = world.outcome(":")
    assert (outcome.code, outcome.words, outcome.calls) == (0, "", [])
