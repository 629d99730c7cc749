"""The state volume of an earlier boot: checked, unsealed, measured, opened. Or locked, and why."""

from __future__ import annotations

from pathlib import Path

from hsm.errors import TpmCreationError, TpmPolicyError, TpmSealedError, TpmStorageRootError
from hsm.keys import public_der
from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError
from nodeos.core.statepolicy import POLICY_PCRS
from nodeos.core.statereport import Mode, StateReport
from nodeos.state import header as headers
from nodeos.state.booted import Booted, fingerprint
from nodeos.state.header import MAX_TPM_TOKENS, Header, TpmToken
from nodeos.state.host import Host
from nodeos.state.luks import Luks
from nodeos.state.unlocked import measure, secure_owner


def open_volume(host: Host, tpm: Tpm, booted: Booted, device: str) -> StateReport:
    """Open the volume on ``device``, or report it as locked if the TPM is not the one that it was sealed by.

    Raises RefusedError for a header that is not ours, TpmError for what the TPM does not allow. Nothing on the
    disk is changed then.
    """
    path = host.run / "header"
    luks = Luks(Path(device)).copy_to(path)
    header = headers.parse(luks.metadata(), luks.uuid(), device, known=booted.known)
    try:
        token, key = _unseal(tpm, booted, header)
    except TpmStorageRootError as error:
        path.unlink()
        return _locked(host, booted, header, device, error)
    try:
        tpm.check_creation(token.sealed)
        reason = ""
    except TpmCreationError as error:
        reason = error.message
        host.say(reason)
    # This order: once PCR 15 is extended, the TPM neither gives the key out nor proves a new sealing of it.
    volume_key = luks.volume_key(key, token.keyslot)
    keys = _follow_rotation(host, tpm, booted, header, device=device, token=token, key=key, proven=not reason)
    measure(tpm, volume_key, header.uuid)
    host.open(path, device, key, token.keyslot)
    path.unlink()
    host.check_filesystem()
    srk = token.sealed.srk_public
    secure_owner(host, tpm, srk)
    return StateReport(
        mode=Mode.OPEN,
        made_this_boot=False,
        luks_uuid=header.uuid,
        device=device,
        policy_keys=keys,
        policy_pcrs=POLICY_PCRS,
        floor=tpm.read_floor(srk=srk),
        security_version=booted.security_version,
        creation_proven=not reason,
        reason=reason,
    )


def _unseal(tpm: Tpm, booted: Booted, header: Header) -> tuple[TpmToken, bytes]:
    """The first token that the TPM opens, this release's own key before older ones.

    Raises the first one's error.
    """
    own = {fingerprint(key) for key in booted.policy_keys}
    first: NodeosError | None = None
    for token in sorted(header.tokens, key=lambda token: token.key not in own):
        try:
            return token, tpm.unseal(token.sealed, booted.signatures)
        except (TpmPolicyError, TpmSealedError, TpmStorageRootError) as error:
            first = first or error
    if first is None:
        raise ValueError("a header without a TPM token was accepted")
    raise first


def _locked(
    host: Host, booted: Booted, header: Header, device: str, error: TpmStorageRootError
) -> StateReport:
    if header.recovery is None:
        raise NodeosError(
            f"{device} can't be opened, and has no recovery key: {error.message}",
            hint="put the disk back into its own machine; if its TPM was cleared, the state is lost: install anew",
        ) from error
    host.say(f"{device} stays locked: {error.message}")
    host.say("→ the node starts without its state; its operator can unlock it with `nodeos node recover`")
    return StateReport(
        mode=Mode.LOCKED,
        made_this_boot=False,
        luks_uuid=header.uuid,
        device=device,
        policy_keys=header.policy_keys,
        policy_pcrs=POLICY_PCRS,
        floor=0,
        security_version=booted.security_version,
        creation_proven=False,
        reason=error.message,
    )


def _follow_rotation(
    host: Host,
    tpm: Tpm,
    booted: Booted,
    header: Header,
    *,
    device: str,
    token: TpmToken,
    key: bytes,
    proven: bool,
) -> tuple[bytes, ...]:
    """Seal to this release's keys too, where the volume is not yet. Returns all keys that it is sealed to.

    The earlier token stays, for the earlier release: the update removes it once it is sure (``forget_key``).
    What was not provably made here does not become so by being sealed again.
    """
    keys = list(header.policy_keys)
    for policy_key in booted.policy_keys:
        if (new := fingerprint(policy_key)) in keys:
            continue
        if len(keys) >= MAX_TPM_TOKENS:
            host.say("the volume is sealed to two older policy keys: this release's is not added")
            continue
        srk = token.sealed.srk_public
        policy = tpm.choose_policy(public_der(policy_key), booted.signatures, srk=srk)
        sealed = tpm.seal(key, policy_key, srk=srk, under=policy if proven else None)
        Luks(Path(device)).add_token(sealed.to_json((token.keyslot,)))
        host.say("sealed the volume to this release's policy key")
        keys.append(new)
    return tuple(keys)
