"""Virtual machines, as far as they can be held to their word without starting one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.softtpm import ManufacturerCa, SoftTpm
from image import vm
from image.vm import Machine, choose_accelerator, copy_sparse, firmware_speaks
from nodeos.core.errors import ToolError, UsageError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "nodeos.raw"
    path.write_bytes(b"first" + bytes(3 << 20) + b"last" + bytes(2 << 20))
    return path


@pytest.mark.tpm
def test_machine(image: Path, tmp_path: Path, manufacturer_ca: ManufacturerCa) -> None:
    machine = Machine.make(tmp_path / "a/machine", image=image, ca=manufacturer_ca)
    assert machine.directory == tmp_path / "a/machine"
    assert machine.disk.read_bytes() == image.read_bytes()
    assert machine.variables.stat().st_size > 1 << 16
    assert machine.tpm.directory.is_dir()
    assert list(machine.directory.parent.iterdir()) == [machine.directory]


@pytest.mark.tpm
def test_machine_with_an_empty_disk(tmp_path: Path, manufacturer_ca: ManufacturerCa) -> None:
    machine = Machine.make(tmp_path / "machine", ca=manufacturer_ca, disk_bytes=5 << 30)
    assert machine.disk.stat().st_size == 5 << 30
    assert machine.disk.stat().st_blocks == 0


def test_an_iso_is_a_disc_and_another_medium_a_stick(tmp_path: Path) -> None:
    disc = " ".join(vm.medium_options(tmp_path / "medium.iso"))
    stick = " ".join(vm.medium_options(tmp_path / "medium.raw"))
    assert "media=cdrom" in disc
    assert "readonly=on" in disc
    assert "usb-storage" in stick
    for words in (disc, stick):
        assert "bootindex=1" in words


def test_folder_that_is_there_is_left_alone(
    image: Path, tmp_path: Path, manufacturer_ca: ManufacturerCa
) -> None:
    for name in ("machine", "machine.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note").touch()
    with pytest.raises(UsageError, match="machine is there already"):
        Machine.make(tmp_path / "machine", image=image, ca=manufacturer_ca)
    assert sorted(path.name for path in tmp_path.glob("machine*/*")) == ["note", "note"]


@pytest.mark.parametrize("wrong", ["firmware", "tpm", "image"])
def test_machine_that_failed_leaves_nothing(
    wrong: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manufacturer_ca: ManufacturerCa
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ToolError("swtpm_setup failed")

    if wrong == "firmware":
        monkeypatch.setattr(vm, "BLANK_VARIABLES", tmp_path / "absent.fd")
    elif wrong == "tpm":
        monkeypatch.setattr(SoftTpm, "provision", fail)
    else:
        image.unlink()
    folder = tmp_path / "machines"
    with pytest.raises((ToolError, OSError)):
        Machine.make(folder / "machine", image=image, ca=manufacturer_ca)
    assert not folder.exists() or list(folder.iterdir()) == []


pieces = st.lists(
    st.one_of(st.binary(max_size=64), st.integers(0, 3 << 20).map(bytes), st.just(bytes(1 << 20))), max_size=6
)


@given(pieces)
def test_sparse_copy_is_equal(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        source.write_bytes(b"".join(parts))
        target.write_bytes(b"what was there before" * 100)
        copy_sparse(source, target)
        assert target.read_bytes() == source.read_bytes()


def test_sparse_copy_is_sparse(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(8 << 20) + b"end")
    copy_sparse(source, target)
    assert target.stat().st_blocks * 512 < 1 << 20


def test_no_kvm_device(tmp_path: Path) -> None:
    assert choose_accelerator(tmp_path / "probe", device=tmp_path / "absent") == "tcg"
    assert not (tmp_path / "probe").exists(), "nothing was started"


def test_device_that_is_not_kvm(tmp_path: Path) -> None:
    plain = tmp_path / "kvm"
    plain.touch()
    assert choose_accelerator(tmp_path / "probe", device=plain) == "tcg"
    assert choose_accelerator(tmp_path / "probe", device=Path("/dev/null")) == "tcg"


def fake_qemu(directory: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that does what ``body`` says; ``console`` is the file of its serial line."""
    program = directory / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys, time, pathlib\n"
        "word = sys.argv[sys.argv.index('-serial') + 1]\n"
        f"console = pathlib.Path(word.removeprefix('file:'))\n{body}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_firmware_that_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "console.write_text('BdsDxe: no bootable option')\ntime.sleep(60)", monkeypatch)
    assert firmware_speaks(tmp_path / "probe", "kvm")


def test_firmware_that_speaks_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "console.write_text('BdsDxe: no bootable option')", monkeypatch)
    assert firmware_speaks(tmp_path / "probe", "kvm")


@pytest.mark.parametrize(
    "body",
    ["sys.exit(1)", "time.sleep(60)", "console.write_text('KVM internal error')\ntime.sleep(60)"],
    ids=["ends", "hangs", "says something else"],
)
def test_firmware_that_says_nothing(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, body, monkeypatch)
    assert not firmware_speaks(tmp_path / "probe", "kvm", seconds=0.6)


def test_word_of_an_earlier_probe_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "sys.exit(1)", monkeypatch)
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/probe.log").write_text("BdsDxe: starting")
    assert not firmware_speaks(tmp_path / "probe", "kvm", seconds=5)
