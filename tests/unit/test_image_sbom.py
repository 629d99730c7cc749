"""The bill of materials, against the fields that SPDX 2.3 requires (sections in image/sbom.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from image import sbom
from nodeos.core.wire import ParseError, canonical_json

WHEELS = Path(__file__).resolve().parents[2] / "image/locks/node.txt"
PACKAGES = canonical_json(
    {
        "version": 1,
        "packages": [
            {"name": "libstdc++6", "version": "14.2.0-19", "architecture": "amd64", "sha256": "ab" * 32,
             "images": ["initrd", "root"]},
            {"name": "linux-image-6.12.1-amd64", "version": "6.12.1-1", "architecture": "amd64", "sha256": None,
             "images": ["root"]},
            {"name": "bsdutils", "version": "1:2.41~rc1", "architecture": "amd64", "sha256": "cd" * 32,
             "images": ["root"]},
        ],
    }
)  # fmt: skip
ONE, TWO = "11" * 32, "22" * 32
LOCK = f"cbor2==6.2.1 \\\n    --hash=sha256:{TWO} \\\n    --hash=sha256:{ONE}\n    # via nodeos\n"


def document(packages: bytes = PACKAGES, lock: str = LOCK, **options: Any) -> dict[str, Any]:
    data = sbom.make(
        packages,
        lock,
        version="1.2.3",
        created=1_767_225_600,
        root_hash=b"r" * 32,
        commit="c0ffee",
        **options,
    )
    value: dict[str, Any] = json.loads(data)
    assert data == canonical_json(value)
    return value


def test_document() -> None:
    """6.1 to 6.5, 6.8, 6.9."""
    value = document()
    assert value["spdxVersion"] == "SPDX-2.3"
    assert value["dataLicense"] == "CC0-1.0"
    assert value["SPDXID"] == "SPDXRef-DOCUMENT"
    assert value["name"] == "nodeos-1.2.3"
    assert value["documentNamespace"].endswith((b"r" * 32).hex())
    assert "#" not in value["documentNamespace"]
    assert value["creationInfo"] == {"created": "2026-01-01T00:00:00Z", "creators": ["Tool: nodeos"]}


def test_every_package_has_what_is_required() -> None:
    """7.1, 7.2, 7.7: name, SPDXID, download location; 7.10: hex in lower case."""
    packages = document(lock=WHEELS.read_text())["packages"]
    assert len(packages) > 10
    for package in packages:
        assert package["name"]
        assert re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", package["SPDXID"])
        assert package["downloadLocation"] == "NOASSERTION"
        assert package["filesAnalyzed"] is False
        for checksum in package.get("checksums", []):
            assert checksum["algorithm"] == "SHA256"
            assert re.fullmatch("[0-9a-f]{64}", checksum["checksumValue"])
    assert len({package["SPDXID"] for package in packages}) == len(packages)


def test_the_system_contains_all_others() -> None:
    value = document()
    assert value["relationships"][0] == {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-nodeos",
    }
    others = {package["SPDXID"] for package in value["packages"]} - {"SPDXRef-nodeos"}
    contained = value["relationships"][1:]
    assert {item["relatedSpdxElement"] for item in contained} == others
    assert {(item["spdxElementId"], item["relationshipType"]) for item in contained} == {
        ("SPDXRef-nodeos", "CONTAINS")
    }
    system = next(package for package in value["packages"] if package["SPDXID"] == "SPDXRef-nodeos")
    assert (system["versionInfo"], system["sourceInfo"]) == ("1.2.3", "git commit c0ffee")


def named(value: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(package for package in value["packages"] if package["name"] == name)
    return found


def test_debian_packages() -> None:
    value = document()
    package = named(value, "libstdc++6")
    assert package["supplier"] == "Organization: Debian"
    assert package["comment"] == "In: initrd, root."
    assert package["checksums"] == [{"algorithm": "SHA256", "checksumValue": "ab" * 32}]
    assert package["externalRefs"] == [
        {
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=trixie",
        }
    ]
    epoch = named(value, "bsdutils")["externalRefs"][0]["referenceLocator"]
    assert epoch == "pkg:deb/debian/bsdutils@1%3A2.41~rc1?arch=amd64&distro=trixie"
    kernel = named(value, "linux-image-6.12.1-amd64")
    assert kernel["summary"] == "The kernel."
    assert "checksums" not in kernel


def test_python_packages() -> None:
    package = named(document(), "cbor2")
    assert package["externalRefs"][0]["referenceLocator"] == "pkg:pypi/cbor2@6.2.1"
    assert [item["checksumValue"] for item in package["checksums"]] == [ONE, TWO]
    assert package["comment"] == "One of the files with these checksums."


def test_the_wheel_that_was_used() -> None:
    package = named(document(wheels={TWO, "44" * 32}), "cbor2")
    assert [item["checksumValue"] for item in package["checksums"]] == [TWO]
    with pytest.raises(ParseError, match="no file that the lock allows"):
        document(wheels={"33" * 32})


@pytest.mark.parametrize(
    "packages", [b"", b"[]", b"{}", b'{"packages":{}}', b'{"packages":[{}]}', b'{"packages":[1]}']
)
def test_other_lists_of_packages(packages: bytes) -> None:
    with pytest.raises(ParseError, match=r"packages\.json"):
        document(packages=packages)


@pytest.mark.parametrize("lock", ["cbor2", "cbor2==6.2.1", "--index-url=x", f"cbor2>=6 --hash=sha256:{ONE}"])
def test_other_locks(lock: str) -> None:
    with pytest.raises(ParseError, match="lock of Python packages"):
        document(lock=lock)


def test_one_package_twice() -> None:
    with pytest.raises(ParseError, match="stands twice"):
        document(lock=LOCK + LOCK.replace("cbor2", "CBOR2"))
