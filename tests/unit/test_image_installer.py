"""The installer's unified kernel image: assembled from a release, and never with what opens a node's state."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pefile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image import cpio, installer, measure, pe
from nodeos.core.errors import UsageError
from nodeos.core.run import run
from nodeos.installer.cli import RELEASE
from tests.support.pe import make_pe, sign_pe
from tests.support.release import STUB, UKI, build_uki, stub

FILES = {name: f"content of {name}".encode() for name in installer.NEEDED} | {"packages.json": b"[]"}


def parts(uki: dict[str, bytes] | None = None, files: dict[str, bytes] | None = None) -> installer.Parts:
    image = build_uki(UKI if uki is None else uki)
    return installer.Parts(
        uki=image, files=FILES if files is None else files, source_date_epoch=1_700_000_000
    )


def test_only_what_an_installer_needs_is_in_it() -> None:
    made = installer.make_uki(parts())
    installer.check(made)
    sections = pe.section_contents(made)
    assert list(sections) == [*STUB, ".osrel", ".cmdline", ".uname", ".linux", ".initrd"]
    for name in (*STUB, ".osrel", ".uname", ".linux"):
        assert sections[name] == ({**STUB, **UKI})[name]
    words = sections[".cmdline"].decode().split()
    assert words[:4] == ["console=tty0", "console=ttyS0,115200", "quiet", "panic=30"]
    assert "nodeos.install" in words and "rd.systemd.gpt_auto=no" in words
    assert not [word for word in words if word.startswith(("roothash=", "init=", "rd.systemd.gpt_auto=yes"))]


def test_release_follows_the_initrd() -> None:
    initrd = pe.section_contents(installer.make_uki(parts()))[".initrd"]
    assert initrd.startswith(UKI[".initrd"] + bytes(3) + b"070701")
    found = read_cpio(initrd[12:])
    assert {name: data for name, (mode, data) in found.items() if stat.S_ISREG(mode)} == {
        f"release/{name}": data for name, data in FILES.items()
    }
    assert found["release"] == (stat.S_IFDIR | 0o700, b"")


def test_agrees_with_pefile() -> None:
    made = installer.make_uki(parts())
    image = pefile.PE(data=made)
    # The made-up stub is padded with 0xCC, which pefile finds strange.
    assert [word for word in image.get_warnings() if not word.startswith("Byte 0xcc")] == []
    contents = pe.section_contents(made)
    last = image.sections[-1]
    for section in image.sections:
        name = section.Name.rstrip(b"\0").decode()
        assert section.get_data()[: section.Misc_VirtualSize] == contents[name]
        assert section.VirtualAddress % image.OPTIONAL_HEADER.SectionAlignment == 0
    end = last.VirtualAddress + last.Misc_VirtualSize
    assert image.OPTIONAL_HEADER.SizeOfImage == -(-end // 0x1000) * 0x1000


def test_signatures_on_the_nodes_uki_change_nothing() -> None:
    plain = parts()
    signed = replace(plain, uki=sign_pe(plain.uki))
    assert installer.make_uki(signed) == installer.make_uki(plain)
    unsigned_policy = {name: data for name, data in UKI.items() if name != ".pcrsig"}
    assert installer.make_uki(parts(unsigned_policy)) == installer.make_uki(plain)


def test_kernel_keeps_its_flags() -> None:
    made = installer.make_uki(replace(parts(), uki=build_uki(UKI, kernel=0x40000020)))
    flags = {section.name: section.characteristics for section in pe.parse(made).sections}
    assert flags[".linux"] == 0x40000020
    assert flags[".initrd"] == pe.DATA


def test_pcr11_is_never_the_nodes() -> None:
    made = installer.make_uki(parts())
    node = parts().uki
    node_uki = measure.Uki(data=node, sections=pe.section_contents(node))
    for bank in pe.BANKS:
        assert not set(installer.pcr11(made, bank).values()) & set(measure.pcr11(node_uki, bank).values())


@pytest.mark.parametrize("name", installer.NEEDED)
def test_incomplete_release(name: str, tmp_path: Path) -> None:
    files = {key: data for key, data in FILES.items() if key != name}
    with pytest.raises(UsageError, match=name):
        installer.make_uki(parts(files=files))
    for key, data in files.items():
        (tmp_path / key).write_bytes(data)
    with pytest.raises(UsageError, match=name):
        installer.Parts.read(tmp_path)


def test_read(tmp_path: Path) -> None:
    (tmp_path / "signatures").mkdir()
    for name, data in {**FILES, "installer.efi": b"an earlier one"}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match="source_date_epoch"):
        installer.Parts.read(tmp_path)
    (tmp_path / "release.json").write_bytes(b'{"source_date_epoch": 1700000000}')
    found = installer.Parts.read(tmp_path)
    assert found.source_date_epoch == 1_700_000_000
    assert set(found.files) == set(FILES)
    assert found.uki == FILES["nodeos.efi"]
    for wrong in (b'{"source_date_epoch": -1}', b'{"source_date_epoch": "x"}'):
        (tmp_path / "release.json").write_bytes(wrong)
        with pytest.raises(UsageError, match="no time"):
            installer.Parts.read(tmp_path)


@pytest.mark.parametrize(
    ("uki", "why"),
    [
        ({}, "no unified kernel image"),
        ({name: data for name, data in UKI.items() if name != ".initrd"}, "no unified kernel image"),
        ({**UKI, ".profile": b"x"}, "has profiles"),
    ],
)
def test_no_uki(uki: dict[str, bytes], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        installer.make_uki(parts(uki))


@pytest.mark.parametrize("name", [".pcrsig", ".pcrpkey"])
def test_check_refuses_what_opens_a_state(name: str) -> None:
    with pytest.raises(UsageError, match="must not be able"):
        installer.check(pe.add_section(installer.make_uki(parts()), name, b"x"))


@pytest.mark.parametrize("line", ["quiet", "nodeos.install roothash=ab", "nodeos.install root=/dev/sda"])
def test_check_refuses_another_command_line(line: str) -> None:
    image = make_pe({**STUB, ".cmdline": line.encode(), ".linux": b"k", ".initrd": b"i"})
    with pytest.raises(UsageError, match="not an installer's"):
        installer.check(image)


def test_dropping_undoes_adding() -> None:
    before = stub()
    after = pe.add_section(pe.add_section(before, ".a", b"1" * 700), ".b", b"")
    assert pe.drop_sections(after, ".a") == before
    assert pe.drop_sections(after, ".b") == pe.add_section(before, ".a", b"1" * 700)


@pytest.mark.parametrize(
    ("image", "first", "why"),
    [
        (sign_pe(make_pe(STUB)), ".reloc", "signed"),
        (make_pe(STUB, tail=b"x" * 512), ".reloc", "data follows"),
        (make_pe(STUB), ".absent", "no section .absent"),
        (make_pe(STUB), ".text", "no section .text behind"),
    ],
)
def test_dropping_refused(image: bytes, first: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        pe.drop_sections(image, first)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}", fullmatch=True), st.binary(max_size=9), max_size=5
    )
)
def test_cpio_reads_back(files: dict[str, bytes]) -> None:
    folders = {name[:i] for name in files for i, sign in enumerate(name) if sign == "/"}
    files = {name: data for name, data in files.items() if name not in folders}
    archive = cpio.archive(files, mtime=5)
    assert len(archive) % 4 == 0
    found = read_cpio(archive)
    assert {name: data for name, (mode, data) in found.items() if stat.S_ISREG(mode)} == files


def test_cpio_is_deterministic() -> None:
    files = {"b/x": b"1", "a": b"22"}
    made = cpio.archive(files, mtime=1_700_000_000)
    assert made == cpio.archive(dict(reversed(files.items())), mtime=1_700_000_000)
    wanted = "658893f615c5be31"
    assert hashlib.sha256(made).hexdigest()[:16] == wanted


@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/./b", "a\0", "ä"])
def test_cpio_paths(path: str) -> None:
    with pytest.raises(UsageError, match="can't be a path"):
        cpio.archive({path: b""}, mtime=0)


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of its own, by the format's description."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        assert fields[2] == fields[3] == 0
        start = at + 110 + fields[11]
        start += -start % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[start : start + fields[6]])
        at = start + fields[6]
        at += -at % 4


ROOT = Path(__file__).resolve().parents[2]
CONDITION = "ConditionKernelCommandLine=!nodeos.install"


@pytest.mark.parametrize(
    ("tree", "unit"),
    [
        ("image/initrd/extra", "nodeos-state.service"),
        ("image/initrd/extra", "nodeos-var.service"),
        ("image/extra", "nodeos-agent.service"),
        ("image/extra", "nodeos-replica.path"),
        ("image/extra", "nodeos-replica.service"),
    ],
)
def test_units_of_a_node_stay_out_of_an_installer(tree: str, unit: str) -> None:
    units = ROOT / tree / "usr/lib/systemd/system"
    assert (units / unit).is_file(), "the drop-in is for a unit that is there"
    assert CONDITION in (units / f"{unit}.d/10-installer.conf").read_text()


def test_units_of_an_installer_stay_out_of_a_node() -> None:
    for tree, unit in (
        ("image/initrd/extra", "nodeos-release.service"), ("image/extra", "nodeos-installer.service"),
    ):  # fmt: skip
        text = (ROOT / tree / "usr/lib/systemd/system" / unit).read_text()
        assert "ConditionKernelCommandLine=nodeos.install" in text


@pytest.mark.parametrize(
    ("line", "makes"),
    [
        ("quiet nodeos.install panic=30", True),
        ("quiet roothash=ab", False),
        ("quiet nodeos.installed=1", False),
    ],
)
def test_generator_makes_a_root_in_an_installer_only(line: str, makes: bool, tmp_path: Path) -> None:
    text = (
        ROOT / "image/initrd/extra/usr/lib/systemd/system-generators/nodeos-release-generator"
    ).read_text()
    assert text.count("/proc/cmdline") == 1
    script, command_line = tmp_path / "generator", tmp_path / "cmdline"
    script.write_text(text.replace("/proc/cmdline", str(command_line)))
    command_line.write_text(line + "\n")
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    run(["sh", script, *folders], what="running the generator")
    found = sorted(str(path.relative_to(tmp_path)) for folder in folders for path in folder.rglob("*.mount"))
    wanted = ["early/initrd-root-fs.target.requires/sysroot.mount", "early/sysroot.mount"]
    assert found == (wanted if makes else [])
    if makes:
        unit = (folders[1] / "initrd-root-fs.target.requires/sysroot.mount").read_text()
        assert f"What={RELEASE}/root.raw\n" in unit
        assert "Requires=nodeos-release.service\nAfter=nodeos-release.service\n" in unit


def test_paths_agree() -> None:
    """What the archive unpacks to, what the initrd's program moves, and where the installer looks."""
    script = (ROOT / "image/initrd/extra/usr/lib/nodeos/release").read_text()
    assert f"from=/{installer.FOLDER}\n" in script
    assert f"to={RELEASE}\n" in script
