"""``nodeos image keygen``, ``rotate``, ``forbid``, ``sign``, ``attach`` and ``verify`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeos import cli
from tests.support.pe import make_pe
from tests.support.unsigned_build import EPOCH, make_unsigned


def nodeos(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(["--json", "image", *(str(word) for word in words)])
    out, err = capsys.readouterr()
    assert caught.value.code == code, err
    return json.loads(out) if out else None


def test_from_keys_to_a_verified_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, build, out = tmp_path / "keys", tmp_path / "unsigned", tmp_path / "release"
    made = nodeos(capsys, "keygen", keys)
    assert {"PK.crt", "KEK.key", "pcr.pub.pem", "release.key", "VARIANT"} <= set(made["files"])
    nodeos(capsys, "keygen", keys, code=2)
    make_unsigned(build, (keys / "pcr.pub.pem").read_bytes())
    signed = nodeos(capsys, "sign", build, "--keys", keys, "--out", out)
    assert (signed["release"], signed["variant"]) == ("1.2.3", "release")
    again = tmp_path / "again"
    nodeos(capsys, "attach", build, out / "signatures", "--out", again)
    assert (again / "nodeos.efi").read_bytes() == (out / "nodeos.efi").read_bytes()
    key = keys / "release.pub.pem"
    assert nodeos(capsys, "verify", again, "--release-key", key)["verified"] is True
    assert nodeos(capsys, "show", again / "release.json")["version"] == 2
    (again / "root.raw").write_bytes(b"")
    refused = nodeos(capsys, "verify", again, "--release-key", key, code=3)
    assert [found["code"] for found in refused["error"]["findings"]] == ["artefact.size"]
    nodeos(capsys, "verify", out, "--release-key", keys / "pcr.pub.pem", code=3)
    nodeos(capsys, "verify", out, "--release-key", keys / "VARIANT", code=2)
    nodeos(capsys, "verify", out, code=2)


def test_rotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    nodeos(capsys, "rotate", keys, "db", code=2)
    nodeos(capsys, "keygen", keys)
    nodeos(capsys, "rotate", keys, code=2)
    nodeos(capsys, "rotate", keys, "PK", code=2)
    nodeos(capsys, "rotate", keys, "--finish", code=2)
    assert nodeos(capsys, "rotate", keys, "db", "pcr")["next"] == ["db", "pcr"]
    nodeos(capsys, "rotate", keys, "db", "--finish", code=2)
    both = (keys / "release.pub.pem").read_bytes()
    make_unsigned(tmp_path / "one", (keys / "next/pcr.pub.pem").read_bytes())
    first = nodeos(capsys, "sign", tmp_path / "one", "--keys", keys, "--out", tmp_path / "first")
    assert len(first["accepted_pcr7"]) == 2
    assert nodeos(capsys, "rotate", keys, "--finish")["in_use"] == ["db", "pcr"]
    make_unsigned(tmp_path / "two", (keys / "pcr.pub.pem").read_bytes(), epoch=EPOCH + 1)
    second = nodeos(capsys, "sign", tmp_path / "two", "--keys", keys, "--out", tmp_path / "second")
    # One more: the boot loader of update 1 starts update 2 until that is blessed.
    assert len(second["accepted_pcr7"]) == 5
    assert (keys / "release.pub.pem").read_bytes() == both
    nodeos(capsys, "verify", tmp_path / "second", "--release-key", keys / "release.pub.pem")


def test_forbid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    image = tmp_path / "old.efi"
    image.write_bytes(make_pe({".text": b"code"}))
    nodeos(capsys, "forbid", keys, image, code=2)
    nodeos(capsys, "keygen", keys)
    nodeos(capsys, "forbid", keys, keys / "VARIANT", code=2)
    assert nodeos(capsys, "forbid", keys, image)["list"] == str(keys / "forbidden/1")
    nodeos(capsys, "forbid", keys, image, code=2)
    make_unsigned(tmp_path / "build", (keys / "pcr.pub.pem").read_bytes())
    made = nodeos(capsys, "sign", tmp_path / "build", "--keys", keys, "--out", tmp_path / "release")
    words = "db current; KEK current; dbx empty"
    assert made["accepted_pcr7"] == [f"{words}, all forbidden images", f"{words}, no forbidden images"]
    nodeos(capsys, "verify", tmp_path / "release", "--release-key", keys / "release.pub.pem")


def test_identities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodeos(capsys, "keygen", tmp_path / "first")
    identity = tmp_path / "site.json"
    identity.write_text(json.dumps({"kind": "file", "key": "first/site.key"}))
    made = nodeos(capsys, "keygen", tmp_path / "second", "--identity", f"site={identity}")
    assert {"site.json", "site.pub.pem"} <= set(made["files"])
    assert "site.key" not in made["files"]
    public = [(tmp_path / name / "site.pub.pem").read_bytes() for name in ("first", "second")]
    assert public[0] == public[1]
    for wrong in ("site", "=x", "site="):
        nodeos(capsys, "keygen", tmp_path / "third", "--identity", wrong, code=2)
    twice = ("--identity", f"site={identity}", "--identity", f"site={identity}")
    nodeos(capsys, "keygen", tmp_path / "third", *twice, code=2)
    nodeos(capsys, "keygen", tmp_path / "third", "--identity", f"odd={identity}", code=2)
    assert not (tmp_path / "third").exists()
