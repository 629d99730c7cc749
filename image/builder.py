"""Builds the node image: keys, tools, initrd, image, release manifest.

``Config`` is what the user asked for, ``Context`` where the work happens; ``build`` reads as the recipe.
mkosi does the building, from ``mkosi.conf`` at the top of the source tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from image import apt, measure, mkosi, verity, wheels
from image.efivars import payload
from image.keys import KeySet
from nodeos import __version__
from nodeos.core.errors import NodeosError, ToolError, UsageError
from nodeos.core.files import write_atomic
from nodeos.core.release import AcceptedPcr7, Artefact, Release, ReleaseKeys, Variant
from nodeos.core.run import find_tool, run

NEEDED_SPACE = 6 << 30
# Where the sandbox of mkosi sees the PCR keys: the sandbox tree is laid over /etc.
_SANDBOX_KEYS = "/etc/nodeos-keys"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to build. ``source`` is the top of the source tree; ``work`` holds caches and outputs."""

    source: Path
    work: Path
    keys: KeySet
    variant: Variant = Variant.RELEASE
    version: str = __version__


@dataclass(slots=True, kw_only=True)
class Context:
    """A build under way."""

    config: Config
    mkosi: list[str]
    progress: Progress

    @property
    def output(self) -> Path:
        return self.config.work / "image" / self.config.variant

    @property
    def log(self) -> Path:
        return self.config.work / "logs" / f"build-{self.config.variant}.log"

    @property
    def sandbox(self) -> Path:
        return self.config.work / "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The files of a finished build."""

    directory: Path
    disk: Path
    uki: Path
    release: Path

    @classmethod
    def at(cls, directory: Path) -> Built:
        """The build in ``directory``. Raises UsageError if there is none."""
        built = cls(
            directory=directory,
            disk=directory / "nodeos.raw",
            uki=directory / "nodeos.efi",
            release=directory / "release.json",
        )
        for path in (built.disk, built.uki, built.release):
            if not path.is_file():
                raise UsageError(f"{path} is not there", hint="build it with `nodeos image build`")
        return built


def build(config: Config, progress: Progress) -> Built:
    """Build the image. Can be interrupted and run again; caches make the next run short."""
    config.keys.require(config.variant)
    check_host(config)
    progress("tools: mkosi")
    context = Context(config=config, mkosi=mkosi.command(config.work / "tools"), progress=progress)
    progress("packages: Python wheels")
    packages = wheels.fetch(config.source / "image/locks", config.work / "wheels")
    context.log.unlink(missing_ok=True)
    # What the build's scripts make has the modes that stand in them, whoever starts the build.
    umask = os.umask(0o022)
    try:
        prepare_sandbox(context)
        prepare_trees(context)
        progress("initrd (the first time with the tools tree: some minutes)")
        initrd = build_initrd(context)
        prepare_ukify(context)
        progress("image: root, verity, unified kernel image")
        build_image(context, initrd, packages)
    finally:
        os.umask(umask)
        # It holds a copy of the PCR key.
        shutil.rmtree(context.sandbox, ignore_errors=True)
    progress("measurements and manifest")
    return finish(context)


def check_host(config: Config) -> None:
    """Refuse early what would fail late: not root, too little room."""
    if os.geteuid() != 0:
        raise UsageError("building the image needs root", hint="run it with sudo, or in a container as root")
    config.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.work).free
    if free < NEEDED_SPACE and not (config.work / "cache").is_dir():
        raise NodeosError(
            f"{config.work}: {free >> 20} MiB free, a first build needs {NEEDED_SPACE >> 20} MiB",
            hint="make room, or name another folder with --work",
        )
    find_tool("apt-get", package="apt")


def prepare_sandbox(context: Context) -> None:
    """Write what mkosi lays over its tools: package sources, and the PCR policy's keys for ukify.

    One PCR signature only, for the phase ``enter-initrd``: the running system can't unseal its own disk. The
    kernel inside the UKI stays unsigned: a signed one could be started without the stub, with any initrd, and
    that could extend PCR 11 to the very value that the policy allows (see docs/security.md).
    """
    tree = context.sandbox
    shutil.rmtree(tree, ignore_errors=True)
    sources = apt.sources(apt.host_archives()).encode()
    write_atomic(tree / "common/etc/apt/sources.list.d/mkosi.sources", sources)
    keys = context.config.keys
    private = tree / "image"
    for name in (keys.path("pcr.key"), keys.public_file("pcr")):
        write_atomic(private / f"{_SANDBOX_KEYS[1:]}/{name.name}", name.read_bytes(), mode=0o600)
    ukify = (
        f"[UKI]\nPCRPKey={_SANDBOX_KEYS}/pcr.pub.pem\n\n[PCRSignature:initrd]\n"
        f"PCRPrivateKey={_SANDBOX_KEYS}/pcr.key\n"
        f"PCRPublicKey={_SANDBOX_KEYS}/pcr.pub.pem\nPhases=enter-initrd\n"
    )
    write_atomic(private / "usr/lib/systemd/ukify.conf", ukify.encode())


def prepare_trees(context: Context) -> None:
    """Copy the files that go into the images as they are, with the modes that git knows: 0644 and 0755.

    A checkout has the modes that the umask of its owner left.
    """
    for name, source in (("extra", "image/extra"), ("initrd-extra", "image/initrd/extra")):
        for path in sorted((context.config.source / source).rglob("*")):
            target = context.sandbox / name / path.relative_to(context.config.source / source)
            if path.is_symlink():
                target.symlink_to(path.readlink())
            elif path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                write_atomic(target, path.read_bytes(), mode=0o755 if path.stat().st_mode & 0o100 else 0o644)


def prepare_ukify(context: Context) -> None:
    """Lay our wrapper over the tools tree's ukify, and ukify itself beside it (see image/scripts/ukify)."""
    tree = context.sandbox / "image/usr"
    wrapper = context.config.source / "image/scripts/ukify"
    write_atomic(tree / "bin/ukify", wrapper.read_bytes(), mode=0o755)
    real = context.config.work / "mkosi/tools/usr/bin/ukify"
    write_atomic(tree / "lib/nodeos/ukify", real.read_bytes(), mode=0o755)


def build_initrd(context: Context) -> Path:
    """Make the initrd: an image of its own, so that nothing of the root's is in it."""
    config = context.config
    no_shell = context.sandbox / "extra/usr/lib/nodeos/no-shell"
    options = [
        f"--environment=VARIANT={config.variant}",
        f"--extra-tree={context.sandbox / 'initrd-extra'}:/",
        f"--extra-tree={no_shell}:/usr/lib/nodeos/no-shell",
    ]
    run_mkosi(context, config.source / "image/initrd", options, cache="initrd")
    found = [path for path in (config.work / "mkosi").glob("initrd*") if path.suffix != ".manifest"]
    if not found:
        raise ToolError("mkosi made no initrd", hint=f"see {context.log}")
    return max(found, key=lambda path: (path.resolve() == path, path.stat().st_size))


def build_image(context: Context, initrd: Path, packages: Path) -> None:
    """Make the disk image and the UKI."""
    config = context.config
    keys = config.keys
    private = context.sandbox / "image"
    options = [
        f"--initrd={initrd}",
        f"--image-version={config.version}",
        "--output=nodeos",
        f"--sandbox-tree={private}",
        f"--secure-boot-key={keys.path('db.key')}",
        f"--secure-boot-certificate={keys.path('db.crt')}",
        f"--verity-key={keys.path('verity.key')}",
        f"--verity-certificate={keys.path('verity.crt')}",
        f"--build-sources={packages}:wheels",
        f"--extra-tree={context.sandbox / 'extra'}:/",
        f"--extra-tree={keys.public_file('site')}:/usr/lib/nodeos/site.pub.pem",
        f"--build-directory={config.work / 'mkosi.build'}",
        f"--environment=VARIANT={config.variant}",
        # The initrd's build made it.
        f"--tools-tree={config.work / 'mkosi/tools'}",
    ]
    if config.variant is Variant.DEBUG:
        options.append(f"--include={config.source / 'image/debug'}")
    (config.work / "mkosi.build").mkdir(parents=True, exist_ok=True)
    run_mkosi(context, config.source, options, cache=f"image-{config.variant}")


def run_mkosi(context: Context, directory: Path, options: Sequence[str], *, cache: str) -> None:
    """Run one mkosi build. Raises ToolError with what to do for the failures that people meet.

    Each image has a ``cache`` of its own: mkosi names cached trees by distribution and release alone.
    """
    config = context.config
    for name in ("mkosi", f"cache/{cache}", "cache/packages", "workspace"):
        (config.work / name).mkdir(parents=True, exist_ok=True)
    common = context.sandbox / "common"
    arguments = [
        *context.mkosi, f"--directory={directory}", "--force",
        f"--output-directory={config.work / 'mkosi'}",
        f"--cache-directory={config.work / 'cache' / cache}",
        f"--package-cache-directory={config.work / 'cache/packages'}",
        f"--workspace-directory={config.work / 'workspace'}",
        f"--sandbox-tree={common}",
        f"--tools-tree-sandbox-tree={common}",
        f"--source-date-epoch={source_date_epoch(config.source)}",
        *options, "build",
    ]  # fmt: skip
    try:
        run(arguments, what="mkosi", log=context.log, timeout=3600)
    except ToolError as error:
        words = context.log.read_text(errors="replace")
        hints = {
            "No space left on device": f"the disk below {config.work} is full: make room and run it again",
            "Temporary failure resolving": "no network to the package mirror: check it and run it again",
            "Could not connect": "no network to the package mirror: check it and run it again",
            "Failed to fetch": "the package mirror refused or lacks a file: check /etc/apt and run it again",
            "Unable to locate package": "the mirror has no trixie, or an old list: check /etc/apt",
        }
        hint = next(
            (text for sign, text in hints.items() if sign in words), f"the whole log is {context.log}"
        )
        raise ToolError(error.message, hint=hint) from error


def source_date_epoch(source: Path) -> int:
    """The time stamp of all files in the image: the last commit's, or the project's fixed date without git."""
    if not (source / ".git").exists():
        return 1_767_225_600
    return int(_git(source, "log", "-1", "--format=%ct"))


def source_commit(source: Path) -> str:
    """The commit that is built, with ``+changes`` if the tree differs from it."""
    if not (source / ".git").exists():
        return "unknown"
    return _git(source, "rev-parse", "HEAD") + ("+changes" if _git(source, "status", "--porcelain") else "")


def _git(source: Path, *arguments: str) -> str:
    # The build runs as root, often on another person's clone, which git would refuse to read.
    command: list[str | Path] = ["git", "-c", "safe.directory=*", "-C", source, *arguments]
    return run(command, what=f"git {arguments[0]}").decode().strip()


def finish(context: Context) -> Built:
    """Move mkosi's outputs to their place and write the release manifest beside them."""
    config = context.config
    made = config.work / "mkosi"
    fresh = context.output.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for source, name in (("nodeos.raw", "nodeos.raw"), ("nodeos.efi", "nodeos.efi"),
                         ("nodeos.manifest", "packages.json")):  # fmt: skip
        path = made / source
        if not path.exists():
            raise ToolError(f"mkosi made no {source}", hint=f"see {context.log}")
        path.resolve().replace(fresh / name)
    bootloader = measure.read_esp(fresh / "nodeos.raw", "EFI/BOOT/BOOTX64.EFI")
    uki = measure.Uki.read(fresh / "nodeos.efi")
    enrolled = {
        name: measure.read_esp(fresh / "nodeos.raw", f"loader/keys/auto/{name}.auth")
        for name in ("PK", "KEK", "db")
    }
    measure.check_kernel_signer(uki, enrolled["db"])
    lists = {name: payload(data) for name, data in enrolled.items()}
    predicted = measure.predict(bootloader, uki, lists, None)
    release = Release(
        version=config.version,
        variant=config.variant,
        root_hash=uki.root_hash,
        kernel_command_line=uki.command_line,
        artefacts={name: describe(fresh / name) for name in ("nodeos.raw", "nodeos.efi", "packages.json")},
        security_version=1,
        rollback_floor=1,
        pcrs=predicted.pcrs,
        pcr11=predicted.pcr11,
        secure_boot_off=predicted.secure_boot_off,
        accepted_pcr7=(
            AcceptedPcr7(
                name="enrolled", sha256=predicted.pcrs["sha256"][7], sha384=predicted.pcrs["sha384"][7]
            ),
        ),
        keys=ReleaseKeys(
            db=verity.fingerprint(config.keys.certificate("db")),
            pcr=(hashlib.sha256(config.keys.public("pcr")).digest(),),
            release=hashlib.sha256(config.keys.public("release")).digest(),
            verity=verity.fingerprint(config.keys.certificate("verity")),
        ),
        source_commit=source_commit(config.source),
        source_date_epoch=source_date_epoch(config.source),
    )
    write_atomic(fresh / "release.json", release.to_bytes())
    shutil.rmtree(context.output, ignore_errors=True)
    context.output.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(context.output)
    return Built.at(context.output)


def describe(path: Path) -> Artefact:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Artefact(size=path.stat().st_size, sha256=digest)


def package_count(directory: Path) -> int:
    """How many Debian packages the image holds, by mkosi's manifest."""
    return len(json.loads((directory / "packages.json").read_text())["packages"])
