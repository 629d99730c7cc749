"""Builds the node image without any private key: tools, initrd, image, build manifest.

``Config`` is what the user asked for, ``Context`` where the work happens; ``build`` reads as the recipe.
mkosi does the building, from ``mkosi.conf`` at the top of the source tree. What comes out is unsigned (see
``image.unsigned``), and the same for everybody who builds this commit with these public keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image import measure, mkosi, packages, pe, sbom, wheels
from image.publickeys import IN_THE_ROOT, PCR, read_public_keys
from image.unsigned import (
    BOOTLOADER,
    BUILD,
    PACKAGES,
    ROOT,
    SBOM,
    UKI,
    VERITY,
    BuildManifest,
    Rollback,
    Unsigned,
    describe,
)
from nodeos import __version__
from nodeos.core.errors import NodeosError, ToolError, UsageError
from nodeos.core.files import read_file, write_atomic
from nodeos.core.release import Variant
from nodeos.core.run import find_tool, run

NEEDED_SPACE = 6 << 30
# Where the sandbox of mkosi sees the public PCR key: the sandbox tree is laid over /etc.
_SANDBOX_KEYS = "/etc/nodeos-keys"
_IN_IMAGE = "usr/lib/nodeos"
# The label of a slot's hash tree, "nodeos_VERSION_verity", has at most 36 characters (UEFI 2.10, section 5.3.3).
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.~^-]{0,21}")
_BLOCK = 4096

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to build. ``source`` is the top of the source tree; ``work`` holds caches and outputs; ``keys`` is the
    folder with the public keys (see ``image.publickeys``).
    """

    source: Path
    work: Path
    keys: Path
    variant: Variant = Variant.RELEASE
    version: str = __version__
    # Debian packages: see image.packages.select. ``pool`` also holds the wheels.
    packages: packages.Policy = packages.Policy.LOCKED
    pool: Path | None = None
    snapshot: str | None = None
    # Where the build is put; otherwise where ``unsigned_directory`` says.
    out: Path | None = None


@dataclass(slots=True, kw_only=True)
class Context:
    """A build under way."""

    config: Config
    mkosi: list[str]
    progress: Progress
    selection: packages.Selection

    @property
    def output(self) -> Path:
        return self.config.out or unsigned_directory(self.config.work, self.config.variant)

    @property
    def log(self) -> Path:
        return self.config.work / "logs" / f"build-{self.config.variant}.log"

    @property
    def sandbox(self) -> Path:
        return self.config.work / "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The files of a signed release."""

    directory: Path
    disk: Path
    uki: Path
    release: Path

    @classmethod
    def at(cls, directory: Path) -> Built:
        """The release in ``directory``. Raises UsageError if there is none."""
        built = cls(
            directory=directory,
            disk=directory / "nodeos.raw",
            uki=directory / "nodeos.efi",
            release=directory / "release.json",
        )
        for path in (built.disk, built.uki, built.release):
            if not path.is_file():
                raise UsageError(f"{path} is not there", hint="make it with `nodeos image sign`")
        return built


def unsigned_directory(work: Path, variant: Variant) -> Path:
    """Where the unsigned build of a variant lies."""
    return work / "image" / variant / "unsigned"


def build(config: Config, progress: Progress) -> Unsigned:
    """Build the image. Can be interrupted and run again; caches make the next run short."""
    check_version(config.version)
    keys = read_public_keys(config.keys, config.variant)
    rollback = read_rollback(config.source)
    check_host(config)
    progress("packages: Debian")
    selection = packages.select(
        config.source, config.work, config.variant,
        policy=config.packages, pool_=config.pool, snapshot=config.snapshot, progress=progress,
    )  # fmt: skip
    command = mkosi.command(config.work / "tools", selection.mkosi)
    context = Context(config=config, mkosi=command, progress=progress, selection=selection)
    progress("packages: Python wheels")
    python = wheels.fetch(config.source / "image/locks", (config.pool or config.work) / "wheels")
    context.log.unlink(missing_ok=True)
    # What the build's scripts make has the modes that stand in them, whoever starts the build.
    umask = os.umask(0o022)
    try:
        prepare_sandbox(context, keys[PCR])
        prepare_trees(context, keys)
        initrd = build_initrd(context)
        progress("image: root, hash tree, unified kernel image")
        build_image(context, initrd, python)
    finally:
        os.umask(umask)
        shutil.rmtree(context.sandbox, ignore_errors=True)
    progress("build manifest")
    return finish(context, keys[PCR], rollback)


def check_version(version: str) -> None:
    """Refuse a version that can't be part of partition labels and file names."""
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"the version {version!r} can't name a release",
            hint="use 1 to 22 letters, digits and .~^-, the first one a letter or digit",
        )


def read_rollback(source: Path) -> Rollback:
    """The security version and the rollback floor of the source, from image/release.toml."""
    path = source / "image/release.toml"
    return Rollback.parse(read_file(path, "the security version", limit=1 << 12), str(path))


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


def prepare_sandbox(context: Context, pcr_key: bytes) -> None:
    """Write what mkosi lays over its tools: package sources, and the public PCR key for ukify.

    ukify measures and embeds that key; without a private one it signs no policy.
    """
    tree = context.sandbox
    shutil.rmtree(tree, ignore_errors=True)
    write_atomic(tree / "common/etc/apt/sources.list.d/mkosi.sources", context.selection.sources)
    write_atomic(tree / "image" / f"{_SANDBOX_KEYS[1:]}/{PCR}", pcr_key)
    ukify = f"[UKI]\nPCRPKey={_SANDBOX_KEYS}/{PCR}\n"
    write_atomic(tree / "image/usr/lib/systemd/ukify.conf", ukify.encode())


def prepare_trees(context: Context, keys: Mapping[str, bytes]) -> None:
    """Copy the files that go into the images as they are, with the modes that git knows: 0644 and 0755.

    A checkout has the modes that the umask of its owner left. The root also gets the public keys and release.toml.
    """
    source = context.config.source
    for name, top in (("extra", source / "image/extra"), ("initrd-extra", source / "image/initrd/extra")):
        (context.sandbox / name).mkdir(parents=True, exist_ok=True)
        for path in sorted(top.rglob("*")):
            target = context.sandbox / name / path.relative_to(top)
            if path.is_symlink():
                target.symlink_to(path.readlink())
            elif path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                write_atomic(target, path.read_bytes(), mode=0o755 if path.stat().st_mode & 0o100 else 0o644)
    folder = context.sandbox / "extra" / _IN_IMAGE
    for name in IN_THE_ROOT:
        write_atomic(folder / name, keys[name])
    write_atomic(folder / "release.toml", (source / "image/release.toml").read_bytes())


def build_initrd(context: Context) -> Path:
    """Make the initrd: an image of its own, so that nothing of the root's is in it.

    One that was made from the very same inputs is used again, as mkosi would make the same bytes from its cache.
    """
    config = context.config
    stamp = config.work / "cache/initrd" / f"{config.variant}.stamp"
    key = initrd_key(context)
    found = find_initrd(context)
    if found and stamp.is_file() and stamp.read_text() == f"{key} {describe(found).sha256.hex()}":
        return found
    context.progress("initrd (the first time with the tools tree: some minutes)")
    stamp.unlink(missing_ok=True)
    no_shell = context.sandbox / "extra/usr/lib/nodeos/no-shell"
    options = [
        "--manifest-format=json",
        f"--environment=VARIANT={config.variant}",
        f"--extra-tree={context.sandbox / 'initrd-extra'}:/",
        f"--extra-tree={no_shell}:/usr/lib/nodeos/no-shell",
        f"--output=initrd-{config.variant}",
    ]
    run_mkosi(context, config.source / "image/initrd", options, cache="initrd")
    made = find_initrd(context)
    if made is None:
        raise ToolError("mkosi made no initrd", hint=f"see {context.log}")
    write_atomic(stamp, f"{key} {describe(made).sha256.hex()}".encode())
    return made


def find_initrd(context: Context) -> Path | None:
    """The initrd of the variant that mkosi left: the file, not the link to it."""
    name = f"initrd-{context.config.variant}"
    found = [
        path for path in (context.config.work / "mkosi").glob(f"{name}.cpio*")
        if path.suffix != ".manifest" and not path.is_symlink()
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


def initrd_key(context: Context) -> str:
    """A hash over all that the initrd is made from: configuration, files, time stamp, package sources, mkosi."""
    config = context.config
    digest = hashlib.sha256(f"{config.variant} {source_date_epoch(config.source)} {context.mkosi}\0".encode())
    trees = (
        config.source / "image/initrd", context.sandbox / "initrd-extra", context.sandbox / "common",
        context.sandbox / "extra/usr/lib/nodeos/no-shell", config.source / "image/packages.lock",
    )  # fmt: skip
    for tree in trees:
        for path in [tree, *sorted(tree.rglob("*"))] if tree.exists() else []:
            status = path.lstat()
            digest.update(f"{path.relative_to(tree)}\0{status.st_mode:o}\0".encode())
            if path.is_symlink():
                digest.update(os.fsencode(path.readlink()) + b"\0")
            elif path.is_file():
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def build_image(context: Context, initrd: Path, python: Path) -> None:
    """Make the root, its hash tree and the unified kernel image."""
    config = context.config
    options = [
        f"--initrd={initrd}",
        f"--image-version={config.version}",
        "--output=nodeos",
        f"--sandbox-tree={context.sandbox / 'image'}",
        f"--build-sources={python}:wheels",
        f"--extra-tree={context.sandbox / 'extra'}:/",
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
            "Unable to locate package": "it is not in image/packages.lock, or the mirror has no trixie: "
            "`nodeos image lock` makes the lock anew",
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


def finish(context: Context, pcr_key: bytes, rollback: Rollback) -> Unsigned:
    """Move mkosi's outputs to their place and write the build manifest beside them."""
    config = context.config
    made = config.work / "mkosi"
    fresh = context.output.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    listed = packages.report(context.selection, config.work)
    for source, name in (("nodeos.root.raw", ROOT), ("nodeos.verity.raw", VERITY), ("boot.efi", BOOTLOADER),
                         ("nodeos.efi", UKI)):  # fmt: skip
        path = made / source
        if not path.exists():
            raise ToolError(f"mkosi made no {source}", hint=f"see {context.log}")
        path.resolve().replace(fresh / name)
        (fresh / name).chmod(0o644)
    # The partitions are what counts, and only they are kept.
    for left in made.glob("nodeos*"):
        left.unlink()
    for name in (BOOTLOADER, UKI):
        write_atomic(fresh / name, normal_form((fresh / name).read_bytes(), name))
    uki = measure.Uki.read(fresh / UKI)
    check_uki(uki, pcr_key)
    if (fresh / ROOT).stat().st_size % _BLOCK or (fresh / VERITY).stat().st_size % _BLOCK:
        raise ToolError("mkosi made a partition that is no whole number of blocks", hint=f"see {context.log}")
    write_atomic(fresh / PACKAGES, listed)
    parts = sbom.make(
        listed,
        (config.source / "image/locks/node.txt").read_text(),
        version=config.version,
        created=source_date_epoch(config.source),
        root_hash=uki.root_hash,
        commit=source_commit(config.source),
        wheels=wheels.hashes((config.pool or config.work) / "wheels"),
    )
    write_atomic(fresh / SBOM, parts)
    names = (ROOT, VERITY, BOOTLOADER, UKI, PACKAGES, SBOM)
    manifest = BuildManifest(
        release=config.version,
        variant=config.variant,
        root_hash=uki.root_hash,
        kernel_command_line=uki.command_line,
        source_commit=source_commit(config.source),
        source_date_epoch=source_date_epoch(config.source),
        security_version=rollback.security_version,
        rollback_floor=rollback.rollback_floor,
        artefacts={name: describe(fresh / name) for name in names},
    )
    write_atomic(fresh / BUILD, manifest.to_bytes())
    shutil.rmtree(context.output, ignore_errors=True)
    fresh.rename(context.output)
    return Unsigned(directory=context.output, build=manifest)


def normal_form(data: bytes, what: str) -> bytes:
    """The image as it is once signatures are taken off again. Raises UsageError if it is signed already."""
    if pe.signatures(data, what):
        raise UsageError(f"{what} is signed, an unsigned build has no signature", hint="see mkosi.conf")
    return pe.strip_signatures(data, what)


def check_uki(uki: measure.Uki, pcr_key: bytes) -> None:
    """Refuse a unified kernel image that carries a PCR signature, or another PCR key than was asked for.

    A signed policy from elsewhere could be one for later boot phases, and the state volume would be bound to a
    key that isn't ours.
    """
    if ".pcrsig" in uki.sections:
        raise UsageError("the UKI of an unsigned build carries a PCR signature", hint="see mkosi.conf")
    if uki.sections.get(".pcrpkey", b"").rstrip(b"\0") != pcr_key:
        raise UsageError(f"the UKI doesn't carry the PCR policy key of {PCR}", hint="see image/builder.py")


def package_count(directory: Path) -> int:
    """How many Debian packages the image holds, by mkosi's manifest."""
    return len(json.loads((directory / "packages.json").read_text())["packages"])
