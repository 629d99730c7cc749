"""From a machine that was just started to an open (or locked) state volume and its report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from hsm.errors import TpmMissingError, TpmPolicyError
from hsm.tpm import Tpm
from nodeos.core.errors import NodeosError
from nodeos.core.files import write_atomic
from nodeos.core.statereport import LOCKED, REPORT, Mode, StateReport
from nodeos.state.booted import KEY_FILE, POLICY, SIGNATURE_FILE, Booted, read_booted
from nodeos.state.contents import MIB, Contents, contents
from nodeos.state.disks import NotThereYetError, Places, find, parse_boot_partition
from nodeos.state.host import Host
from nodeos.state.making import make
from nodeos.state.opening import open_volume
from nodeos.state.root import check_root
from nodeos.state.site import read_site

_TRIES, _SECONDS = 30, 2.0
_TPM_TRIES = 3
# What a release determines: images, Secure Boot, the UKI's sections, what was added to the UKI and to the root.
_TOLD_PCRS = (4, 7, 11, 12, 13)


def run_patiently(
    host: Host, open_tpm: Callable[[], AbstractContextManager[Tpm]], *, extra: Path, library: Path
) -> StateReport:
    """``run``, from the start again while the TPM gives no answer: the boot need not end for one that is slow."""
    for attempt in range(1, _TPM_TRIES + 1):
        try:
            with open_tpm() as tpm:
                return run(host, tpm, extra=extra, library=library)
        except TpmMissingError as error:
            if attempt == _TPM_TRIES:
                raise
            host.say(f"{error.message}; trying again")
        host.wait(_SECONDS)
    raise AssertionError("the last try returns or raises")


def run(host: Host, tpm: Tpm, *, extra: Path, library: Path) -> StateReport:
    """``extra`` is systemd-stub's directory, ``library`` the root's /usr/lib/nodeos. Raises NodeosError."""
    host.run.mkdir(parents=True, exist_ok=True)
    booted = read_booted(extra, library)
    for name in (KEY_FILE, SIGNATURE_FILE):
        write_atomic(host.run / POLICY / name, (extra / name).read_bytes())
    places = find_places(host)
    check_root(host, places.disk, library)
    try:
        report = _decide(host, tpm, booted, places, library)
    except TpmPolicyError:
        # Beside the release's predictions they tell what is another than it should be.
        for pcr, value in tpm.read_pcrs(_TOLD_PCRS).items():
            host.say(f"PCR {pcr} is {value.hex()}")
        raise
    write_atomic(host.run / REPORT.name, report.to_bytes())
    if report.mode is Mode.LOCKED:
        write_atomic(host.run / LOCKED.name, report.reason.encode())
    else:
        host.say(f"{'made and opened' if report.made_this_boot else 'opened'} {report.device}")
    return report


def find_places(host: Host) -> Places:
    """Waits for a disk that appears late, at most a minute."""
    wanted = parse_boot_partition(host.boot_variable())
    for attempt in range(_TRIES):
        try:
            return find(host.disks(), wanted)
        except NotThereYetError as error:
            if attempt == 0:
                host.say(f"{error.message}; waiting")
            last = error
        host.wait(_SECONDS)
    raise last


def _decide(host: Host, tpm: Tpm, booted: Booted, places: Places, library: Path) -> StateReport:
    device = places.state
    found = contents(host.read(device, 0, MIB), host.read(device, -MIB, MIB))
    if found is Contents.LUKS2:
        return open_volume(host, tpm, booted, device)
    if found is Contents.FOREIGN:
        raise NodeosError(
            f"{device} holds data that are no state volume; they are left alone",
            hint="install the system anew on this disk if nothing on it is needed",
        )
    if found is Contents.MAKING:
        host.say(f"the making of the state volume on {device} was cut off; it held nothing yet")
    with host.boot_files(places.boot) as boot:
        site = read_site(boot, library)
    return make(host, tpm, booted, device, site.operator_key)
