"""The bill of materials of a release: SPDX 2.3 in JSON.

Section numbers below are those of the SPDX specification 2.3. Pure and deterministic: equal inputs give equal
bytes, the time is the release's own and the namespace comes from the root hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from nodeos.core.wire import ParseError, canonical_json

_DOCUMENT = "SPDXRef-DOCUMENT"
_SYSTEM = "SPDXRef-nodeos"
# A namespace is a name, not an address (6.5): nothing needs to be there.
_NAMESPACE = "urn:nodeos:spdx"


def make(
    packages: bytes,
    wheels_lock: str,
    *,
    version: str,
    created: int,
    root_hash: bytes,
    commit: str,
    wheels: Collection[str] | None = None,
) -> bytes:
    """The SPDX document of a build.

    ``packages`` is ``packages.json``, ``wheels_lock`` the text of ``image/locks/node.txt``, ``created`` seconds
    since 1970. The lock allows several files per Python package; ``wheels`` holds the SHA-256 (hex) of those that
    the build had. Without it all the allowed are listed.

    Raises ParseError if a list does not have its form.
    """
    entries = [
        *(_debian(item, f"packages.json.packages[{i}]") for i, item in enumerate(_packages(packages))),
        *(_wheel(*item, wheels) for item in parse_wheels(wheels_lock)),
    ]
    ids = [entry["SPDXID"] for entry in entries]
    if len(set(ids)) != len(ids):
        raise ParseError("the lists of packages: one stands twice")
    system = {
        "SPDXID": _SYSTEM,
        "name": "nodeos",
        "versionInfo": version,
        "supplier": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "Apache-2.0",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "sourceInfo": f"git commit {commit}",
        "checksums": [{"algorithm": "SHA256", "checksumValue": root_hash.hex()}],
        "comment": "The checksum is the dm-verity root hash of the root file system.",
    }
    document = {
        "spdxVersion": "SPDX-2.3",  # 6.1
        "dataLicense": "CC0-1.0",  # 6.2
        "SPDXID": _DOCUMENT,  # 6.3
        "name": f"nodeos-{version}",  # 6.4
        "documentNamespace": f"{_NAMESPACE}:{version}:{root_hash.hex()}",  # 6.5
        "creationInfo": {  # 6.8, 6.9
            "created": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: nodeos"],
        },
        "packages": [system, *sorted(entries, key=lambda entry: str(entry["SPDXID"]))],
        "relationships": [  # 11.1
            _relationship(_DOCUMENT, "DESCRIBES", _SYSTEM),
            *(_relationship(_SYSTEM, "CONTAINS", item) for item in sorted(ids)),
        ],
    }
    return canonical_json(document)


def _packages(data: bytes) -> list[Any]:
    try:
        found = json.loads(data)["packages"]
    except (ValueError, KeyError, TypeError) as error:
        raise ParseError(f"packages.json: {error}") from error
    if not isinstance(found, list):
        raise ParseError("packages.json.packages: expected a list")
    return found


def _debian(item: Any, what: str) -> dict[str, Any]:
    try:
        name, version, architecture = item["name"], item["version"], item["architecture"]
    except (KeyError, TypeError) as error:
        raise ParseError(f"{what}: {error}") from error
    entry = _package(
        f"deb-{name}-{architecture}",
        name,
        version,
        # purl-spec, type deb: the qualifier arch; names and versions are percent-encoded.
        f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={architecture}&distro=trixie",
        supplier="Organization: Debian",
    )
    if item.get("sha256"):
        entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": item["sha256"]}]
    if item.get("images"):
        entry["comment"] = f"In: {', '.join(item['images'])}."
    if re.match(r"linux-image-\d", name):
        entry["summary"] = "The kernel."
    return entry


def _wheel(name: str, version: str, hashes: tuple[str, ...], used: Collection[str] | None) -> dict[str, Any]:
    if used is not None:
        hashes = tuple(value for value in hashes if value in used)
        if not hashes:
            raise ParseError(f"{name} {version}: the build had no file that the lock allows")
    entry = _package(f"pypi-{name}", name, version, f"pkg:pypi/{name}@{quote(version, safe='')}")
    entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": value} for value in hashes]
    if len(hashes) > 1:
        entry["comment"] = "One of the files with these checksums."
    return entry


def _package(ident: str, name: str, version: str, purl: str, supplier: str = "NOASSERTION") -> dict[str, Any]:
    return {
        # 3.2: letters, digits, "." and "-" only; "_" and "+" stand for themselves by a word, so that two differ.
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", lambda m: f"-x{ord(m[0]):x}-", ident),
        "name": name,  # 7.1
        "versionInfo": version,  # 7.3
        "supplier": supplier,  # 7.5
        "downloadLocation": "NOASSERTION",  # 7.7
        "filesAnalyzed": False,  # 7.8
        "licenseConcluded": "NOASSERTION",  # 7.13
        "licenseDeclared": "NOASSERTION",  # 7.15
        "copyrightText": "NOASSERTION",  # 7.17
        "externalRefs": [  # 7.21
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}
        ],
    }


def _relationship(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def parse_wheels(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, version and allowed SHA-256 hashes of each package in a lock with hashes, as pip reads it.

    Names are normalised (PEP 503).
    """
    found = []
    for raw in re.sub(r"\\\n", " ", text).splitlines():
        line = raw.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)))
        if not match or not hashes:
            raise ParseError(f"the lock of Python packages: {line[:60]!r} is not NAME==VERSION --hash=…")
        found.append((re.sub(r"[-_.]+", "-", match[1]).lower(), match[2], hashes))
    return found
