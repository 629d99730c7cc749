"""Software TPMs with the endorsement certificates of a test manufacturer, for virtual machines and tests.

A ``ManufacturerCa`` is a root and an intermediate certificate authority. ``SoftTpm.provision`` makes a TPM
whose RSA-2048 and P-384 endorsement keys carry certificates of that intermediate, and stores the intermediate
itself in the TPM as real manufacturers do (TCG EK Credential Profile 2.5, section 2.2.1.5: NV 0x01C00100).
Works with swtpm 0.7 and later.
"""

from __future__ import annotations

import datetime
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hsm.keys import private_pem
from nodeos.core.errors import ToolError, UsageError
from nodeos.core.files import write_atomic
from nodeos.core.run import end, find_tool, run, scrubbed_environment

CHAIN_INDEX = 0x01C00100
_STATE = "tpm2-00.permall"
_DONE = "provisioned"
_READY_SECONDS = 20.0
_GET_CAPABILITY = (1).to_bytes(4, "big")  # the control channel's CMD_GET_CAPABILITY


@dataclass(frozen=True, slots=True)
class ManufacturerCa:
    """A test manufacturer's certificate authority in ``directory``. The root's private key is not kept."""

    directory: Path

    @property
    def roots(self) -> Path:
        """A PEM file with the root certificate alone: what a registrar pins."""
        return self.directory / "root.pem"

    @property
    def intermediate(self) -> Path:
        """A PEM file with the certificate that issues the endorsement certificates."""
        return self.directory / "intermediate.pem"

    @property
    def configuration(self) -> Path:
        """The configuration of swtpm_setup."""
        return self.directory / "swtpm_setup.conf"

    @classmethod
    def create(cls, directory: Path) -> ManufacturerCa:
        """Make the authority, or return the one that is there. ``directory`` may not hold anything else."""
        ca = cls(directory.resolve())
        if ca.configuration.exists():
            return ca
        if ca.directory.exists() and any(ca.directory.iterdir()):
            raise UsageError(
                f"{ca.directory}: neither empty nor a manufacturer CA", hint="name another directory"
            )
        ca._make()
        return ca

    def _make(self) -> None:
        root_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
        root = _authority("nodeos test TPM root", root_key.public_key(), None, root_key, path_length=1)
        issuer = _authority("nodeos test TPM issuing CA", key.public_key(), root, root_key, path_length=0)
        pem = serialization.Encoding.PEM
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self.directory / "intermediate.key", private_pem(key), mode=0o600)
        write_atomic(self.intermediate, issuer.public_bytes(pem))
        write_atomic(self.roots, root.public_bytes(pem))
        localca, options = self.directory / "localca.conf", self.directory / "localca.options"
        settings = {
            "statedir": self.directory,
            "signingkey": self.directory / "intermediate.key",
            "issuercert": self.intermediate,
            "certserial": self.directory / "serial",
        }
        write_atomic(localca, "".join(f"{key} = {value}\n" for key, value in settings.items()).encode())
        write_atomic(options, b"")
        tool = find_tool("swtpm_localca", package="swtpm-tools")
        # Written last: its presence says that everything else is there.
        write_atomic(
            self.configuration,
            (
                f"create_certs_tool = {tool}\n"
                f"create_certs_tool_config = {localca}\n"
                f"create_certs_tool_options = {options}\n"
                "active_pcr_banks = sha256\n"
            ).encode(),
        )


def _authority(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    path_length: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start.replace(year=start.year + 40))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(identifier, critical=False)
        .sign(issuer_key, hashes.SHA384())
    )


class SoftTpm:
    """A software TPM whose state is in ``directory``. One process at a time can run it."""

    def __init__(self, directory: Path) -> None:
        # swtpm wants absolute paths: as a daemon it changes its directory.
        self.directory = directory.resolve()

    def provision(self, ca: ManufacturerCa, *, banks: tuple[str, ...] = ("sha1", "sha256", "sha384")) -> None:
        """Make the TPM with endorsement keys and certificates. Does nothing if that was done before."""
        done = self.directory / _DONE
        if done.exists():
            return
        if (self.directory / _STATE).exists():
            raise UsageError(
                f"{self.directory}: holds a TPM that was not provisioned here, or not to the end",
                hint="move it away, or name another directory",
            )
        setup = find_tool("swtpm_setup", package="swtpm-tools")
        # Made aside and renamed, so that an interruption leaves nothing half done.
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.directory) as temporary:
            fresh = SoftTpm(Path(temporary))
            run(
                [
                    *(setup, "--tpm2", "--tpmstate", fresh.directory, "--config", ca.configuration),
                    *("--create-ek-cert", "--pcr-banks", ",".join(banks)),
                    *("--vmid", self.directory.name or "tpm"),
                ],
                what="making a software TPM",
                timeout=60,
                hint="run `make setup`",
            )
            fresh._store_intermediate(ca)
            (fresh.directory / _STATE).rename(self.directory / _STATE)
        write_atomic(done, b"")

    def copy(self, directory: Path) -> SoftTpm:
        """A second TPM with the same keys and state, in a new directory. This one must not be running."""
        twin = SoftTpm(directory)
        twin.directory.mkdir(parents=True, exist_ok=True)
        for name in (_STATE, _DONE):
            shutil.copyfile(self.directory / name, twin.directory / name)
        return twin

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Run the TPM, powered on and started; gives the TCTI to reach it. Ends it on leaving."""
        with _sockets() as base:
            options = ["--server", f"type=unixio,path={base}", "--flags", "not-need-init,startup-clear"]
            with self._process(base.with_name(base.name + ".ctrl"), options):
                yield f"swtpm:path={base}"

    @contextmanager
    def serve_vm(self) -> Iterator[Path]:
        """Run the TPM for QEMU; gives the path of its control socket. Ends with QEMU or on leaving."""
        with _sockets() as base:
            control = base.with_name(base.name + ".ctrl")
            with self._process(control, []):
                yield control

    @contextmanager
    def _process(self, control: Path, options: list[str]) -> Iterator[None]:
        tool = find_tool("swtpm", package="swtpm")
        if not (self.directory / _STATE).exists():
            raise UsageError(f"{self.directory}: no software TPM there", hint="provision it first")
        log = self.directory / "swtpm.log"
        # The control socket is made here and listens before swtpm runs, so that waiting for the answer on it
        # is waiting for the event itself. Our copy is closed at once: if swtpm dies, the wait ends too.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening, log.open("ab") as words:
            listening.bind(str(control))
            listening.listen(4)
            process = subprocess.Popen(
                [
                    *(tool, "socket", "--tpm2", "--tpmstate", f"dir={self.directory}"),
                    *("--ctrl", f"type=unixio,fd={listening.fileno()}", *options),
                ],
                pass_fds=[listening.fileno()],
                env=scrubbed_environment(),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
        try:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.settimeout(_READY_SECONDS)
                    probe.connect(str(control))
                    probe.sendall(_GET_CAPABILITY)
                    if not probe.recv(64):
                        raise ConnectionResetError("it ended")
            except OSError as error:
                tail = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise ToolError(
                    f"swtpm did not start: {error}" + "".join(f"\n  | {line}" for line in tail),
                    hint=f"see that no other process runs the TPM in {self.directory}",
                ) from error
            yield
        finally:
            end(process)

    def _store_intermediate(self, ca: ManufacturerCa) -> None:
        """Write the issuing certificate to the TPM, as its maker would: only the platform can change it."""
        from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

        certificate = x509.load_pem_x509_certificate(ca.intermediate.read_bytes())
        data = certificate.public_bytes(serialization.Encoding.DER)
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=CHAIN_INDEX,
                nameAlg=TPM2_ALG.SHA256,
                attributes=TPMA_NV.PPWRITE
                | TPMA_NV.OWNERREAD
                | TPMA_NV.AUTHREAD
                | TPMA_NV.NO_DA
                | TPMA_NV.PLATFORMCREATE,
                dataSize=len(data),
            )
        )
        with self.serve() as tcti, ESAPI(tcti) as esys:
            index = esys.nv_define_space(None, public, auth_handle=ESYS_TR.PLATFORM)
            for offset in range(0, len(data), 512):
                part = data[offset : offset + 512]
                esys.nv_write(index, part, offset, auth_handle=ESYS_TR.PLATFORM)


@contextmanager
def _sockets() -> Iterator[Path]:
    """A short path for sockets: the kernel allows 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="swtpm-") as directory:
        yield Path(directory) / "tpm"
