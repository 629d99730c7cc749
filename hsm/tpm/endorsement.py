"""The endorsement key: the stored one, or made again from the TCG's template, with its certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hsm.errors import TpmError
from hsm.tpm.connection import Connection
from hsm.tpm.nv import CHAIN_FIRST, CHAIN_LAST, PLACES, EndorsementPlace, leaf_certificate


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """The loaded key, its TPM2B_PUBLIC, and its certificate in DER if the maker stored one."""

    handle: Any
    public: Any
    certificate: bytes | None

    @property
    def usable_with_password(self) -> bool:
        """Keys of the high range may be used with their empty password, those of the low range never."""
        from tpm2_pytss import TPMA_OBJECT

        return bool(int(self.public.publicArea.objectAttributes) & int(TPMA_OBJECT.USERWITHAUTH))


def load(connection: Connection) -> EndorsementKey:
    """The key of the first certificate there is, else RSA-2048. Writes nothing to the TPM."""
    with connection.answers("loading the endorsement key"):
        return _load(connection)


def _load(connection: Connection) -> EndorsementKey:
    esys = connection.esys
    place = next((place for place in PLACES if connection.exists(place.certificate)), None)
    certificate = leaf_certificate(connection.read_storage(place.certificate)) if place else None
    place = place or PLACES[0]
    if connection.exists(place.handle):
        handle = esys.tr_from_tpmpublic(place.handle)
        public, _, _ = esys.read_public(handle)
        if certificate is None or _key_bytes(public) in certificate:
            return EndorsementKey(handle, public, certificate)
    handle, public = _create(connection, place)
    if certificate is not None and _key_bytes(public) not in certificate:
        esys.flush_context(handle)
        raise TpmError(
            "the TPM's endorsement key is not the one in its certificate",
            hint="its endorsement seed was changed after manufacture: restore it, or replace the TPM",
        )
    return EndorsementKey(handle, public, certificate)


def _create(connection: Connection, place: EndorsementPlace) -> tuple[Any, Any]:
    from tpm2_pytss import ESYS_TR
    from tpm2_pytss.utils import NoSuchIndex, create_ek_template

    def stored(index: int) -> bytes:
        if not connection.exists(index):
            raise NoSuchIndex(index)
        return connection.read_storage(index)

    _, template = create_ek_template(place.template, stored)
    handle, public, *_ = connection.esys.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    return handle, public


def read_chain(connection: Connection) -> bytes:
    """What the maker stored of the certificates above the endorsement certificate."""
    data = b""
    with connection.answers("reading the endorsement certificates"):
        for index in range(CHAIN_FIRST, CHAIN_LAST + 1):
            if not connection.exists(index):
                break
            data += connection.read_storage(index)
    return data


def _key_bytes(public: Any) -> bytes:
    """The modulus or the point of a public area, as it stands in a certificate of this key."""
    area = public.publicArea
    if int(area.type) == 0x0001:
        return bytes(area.unique.rsa)
    size = {0x0003: 32, 0x0004: 48}[int(area.parameters.eccDetail.curveID)]
    return bytes(area.unique.ecc.x).rjust(size, b"\0") + bytes(area.unique.ecc.y).rjust(size, b"\0")
