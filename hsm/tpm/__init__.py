"""The node's TPM: its endorsement, its attestation key, quotes, measurements.

The attestation key is a primary key of the endorsement hierarchy with a fixed template, so the same TPM
makes the same key again after a reinstallation. It is exempt from the TPM's dictionary attack protection: its
password is empty, there is nothing to guess, and otherwise each power cut after a quote would count as a
wrong guess (with swtpm the fourth start would be locked out).

Sessions that carry secrets are salted to the endorsement key and encrypt their first parameters, against
listeners on the bus.
"""

from hsm.tpm.attestation import ATTESTATION_HANDLE
from hsm.tpm.connection import DEFAULT_TCTI
from hsm.tpm.device import Tpm
from hsm.tpm.pcrs import PCRS
from hsm.tpm.types import Endorsement, Quote, TpmIdentity

__all__ = ["ATTESTATION_HANDLE", "DEFAULT_TCTI", "PCRS", "Endorsement", "Quote", "Tpm", "TpmIdentity"]
