"""The signature over the root hash of the system that was started, on the disk that it was started from.

The command line, which the UKI's signature covers, names the root hash, and dm-verity holds every block of the
root to it. This is one more key that must have agreed: what was signed for the firmware alone, or written into a
slot without its signature, opens no state. It is code of the root itself, so it holds back no root that was made
not to ask; what does is the UKI's signature and the policy that the state is sealed under.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from nodeos.core import layout
from nodeos.core.errors import Finding, NodeosError, RefusedError, UsageError
from nodeos.core.files import read_file
from nodeos.core.verity import root_hash_of, verity_problem
from nodeos.state import disks
from nodeos.state.host import Host

CERTIFICATE_FILE = "verity.crt"
_HINT = "the disk was changed, or is failing: start the other release in the boot menu, or install the system anew"


def check_root(host: Host, disk: str, library: Path) -> None:
    """Hold the signature partition on ``disk`` to a certificate in ``library``/verity.crt.

    Raises RefusedError if it does not vouch for the root, NodeosError if that can't be told.
    """
    try:
        root_hash = root_hash_of(host.command_line())
        trusted = x509.load_pem_x509_certificates(
            read_file(library / CERTIFICATE_FILE, "the verity certificate", limit=1 << 16)
        )
    except (UsageError, ValueError) as error:
        raise NodeosError(
            f"the root can't be checked: {error}", hint="start or install a signed release"
        ) from error
    device = disks.find_signature(host.disks(), disk, str(layout.signature_uuid(root_hash)))
    why: str | None = "no signature partition of this release, or more than one"
    if device is not None:
        why = verity_problem(host.read(device, 0, layout.SIGNATURE_SIZE), root_hash, trusted)
    if why is not None:
        raise RefusedError(
            "the signature over the root hash of this system does not hold",
            (Finding(code="verity.signature", message=f"{device or disk}: {why}"),),
            hint=_HINT,
        )
