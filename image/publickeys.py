"""The public halves of the keys that a build needs: they are inside the image, and no private key is near.

KEYS holds ``pcr.pub.pem`` (EC P-256, what the state volume's policy is signed by), ``site.pub.pem``,
``release.pub.pem`` and ``verity.crt``. Each may hold several PEM blocks: while a key is being replaced, the
present one and the next.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from nodeos.core.errors import UsageError
from nodeos.core.files import read_file
from nodeos.core.release import Variant

PCR, SITE, RELEASE, VERITY = "pcr.pub.pem", "site.pub.pem", "release.pub.pem", "verity.crt"
# What the root carries in /usr/lib/nodeos. The PCR key is in the unified kernel image, where it is measured.
IN_THE_ROOT = (SITE, RELEASE, VERITY)
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n")


def read_public_keys(directory: Path, variant: Variant) -> dict[str, bytes]:
    """The content of the four files. Raises UsageError if one is missing, is not what it should be, or holds more.

    If the folder says which variant its keys are for, it must be ``variant``: what holds for the signing keys is
    said early here.
    """
    missing = [name for name in (PCR, *IN_THE_ROOT) if not (directory / name).is_file()]
    if missing:
        raise UsageError(
            f"public keys are missing in {directory}: {', '.join(missing)}",
            hint=f"copy them there, or make keys with `nodeos image keygen --variant {variant} {directory}`",
        )
    marked = directory / "VARIANT"
    if marked.exists():
        found = read_file(marked, "the variant of the keys").decode("ascii", "replace").strip()
        if found != variant:
            raise UsageError(
                f"the keys in {directory} are for the {found} variant, not for {variant}",
                hint="an image with a shell must never be signed like a release; make keys of its own",
            )
    return {name: _read(directory / name) for name in (PCR, *IN_THE_ROOT)}


def _read(path: Path) -> bytes:
    label = b"CERTIFICATE" if path.suffix == ".crt" else b"PUBLIC KEY"
    data = read_file(path, "the public key", limit=1 << 16)
    blocks = list(_BLOCK.finditer(data))
    # Nothing between the blocks either: a private key in the wrong file would be published.
    if (
        not blocks
        or b"".join(block[0] for block in blocks) != data
        or {block[1] for block in blocks} != {label}
    ):
        raise UsageError(
            f"{path}: expected PEM blocks {label.decode()} and nothing else",
            hint="it goes into the image as it is",
        )
    for block in blocks:
        try:
            if path.name == VERITY:
                x509.load_pem_x509_certificate(block[0])
                continue
            key = load_pem_public_key(block[0])
        except ValueError as error:
            raise UsageError(f"{path}: {error}", hint="the file is damaged; copy it again") from error
        if path.name == PCR and not (
            isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        ):
            raise UsageError(
                f"{path}: not an EC key on the curve P-256",
                hint="the state volume's policy needs one; make new keys with `nodeos image keygen`",
            )
    return data
