"""Fetch datasets and released weights: accept terms, download and verify archives, prepare the tree that vpd reads."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vpd.download.archives import RECEIPTS
from vpd.download.http import Archive, Part, Rejected, download, verify
from vpd.download.sources import Entry, FileSource, acceptance, load_sources, require_acceptance
from vpd.utils.disk import amount, existing, require_space
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import atomic_path, exclusive
from vpd.utils.fingerprint import Fingerprint, fingerprint, is_finished, read_manifest, write_manifest

__all__ = ["fetch", "listing", "shared_out"]


class Preparation(NamedTuple):
    """A function that prepares files, given by role, in the tree and returns the names of what is there then; the roles that
    it needs; and its module, whose edits make trees anew."""

    run: Callable[[dict[str, Path], Path], Sequence[str]]
    roles: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


def shared_out(names: Iterable[str], given: Sequence[Path], sources: Path | None) -> dict[str, list[Path]]:
    """Give each of several entries its own of the user's files, and the first what no entry knows, which it refuses."""
    catalogue, where = load_sources(sources), str(sources or "vpd fetch")
    entries = {name: pick(name, catalogue.entries, "download", where) for name in names}
    known = {
        name: {word for file in entry.files.values() for word in (file.name, *file.aliases)}
        for name, entry in entries.items()
    }
    shares = {name: [path for path in given if path.name in words] for name, words in known.items()}
    strange = [path for path in given if not any(path.name in words for words in known.values())]
    return shares | {name: shares[name] + strange for name in list(known)[:1]}


def fetch(
    name: str,
    out: Path,
    archives: Path,
    *,
    sources: Path | None = None,
    accept: bool = False,
    given: Sequence[Path] = (),
) -> None:
    """Complete the tree ``out`` with an entry of the catalogue; do nothing if its receipt still holds.

    Args:
        name: of the entry.
        out: tree, which other entries may share.
        archives: folder of archives, partial files and accepted licences.
        sources: catalogue; the one that comes with vpd if not given.
        accept: whether the user accepts the terms, if that is not recorded yet.
        given: files that the user has already.
    """
    catalogue, where = load_sources(sources), str(sources or "vpd fetch")
    entry = pick(name, catalogue.entries, "download", where)
    preparation = _preparation(entry.prepare, entry.files, f"{where}: entries.{name}.prepare")
    # Which files, and what is made of them, decides the tree; mirrors and terms do not.
    wanted = {role: [file.name, file.size, file.digests] for role, file in entry.files.items()}
    receipt, made_from = out / RECEIPTS / name, fingerprint([entry.prepare, wanted], preparation.code)
    try:
        if _is_complete(out, receipt, made_from):
            return
        require_acceptance(name, entry.licence, catalogue.licences[entry.licence], archives, accept)
        with exclusive(archives / ".locks" / name, name):
            if _is_complete(out, receipt, made_from):
                return
            files = _collect(name, entry, archives, out, given)
            with exclusive(out / RECEIPTS / "tree", str(out)):
                placed = preparation.run({role: file.path for role, file in files.items()}, out)
                used = {role: {"origin": file.origin, "sha256": file.sha256} for role, file in files.items()}
                facts = {"licence": entry.licence, "archives": used, "placed": list(placed)}
                write_manifest(receipt, made_from, facts, files={})
    except OSError as error:
        reason = f"{name} cannot be fetched to {error.filename or out}: {error.strerror or error}"
        raise UserError(f"{reason}; free some space or fix the permissions") from error


def _is_complete(out: Path, receipt: Path, made_from: Fingerprint) -> bool:
    """Whether the receipt holds, and what the entry put into the tree is there."""
    if not is_finished(receipt, made_from):
        return False
    return all((out / name).exists() for name in read_manifest(receipt).get("placed", ()))


def _preparation(kind: str, roles: Collection[str], where: str) -> Preparation:
    """Look up a kind of preparation; UserError for an unknown one, or if it needs a role that is not among ``roles``."""
    from vpd.download import ade20k, nyuv2, refcoco  # here, because they import what reads images

    kinds = {
        "ade20k": Preparation(ade20k.prepare, ("archive",), ("download/ade20k",)),
        "nyuv2-labeled": Preparation(nyuv2.prepare_labeled, ("labeled", "splits"), ("download/nyuv2",)),
        "nyuv2-sync": Preparation(nyuv2.prepare_sync, ("archive", "list"), ("download/nyuv2",)),
        "refcoco": Preparation(refcoco.prepare_references, ("archive",), ("download/refcoco",)),
        "coco": Preparation(refcoco.prepare_images, ("archive",), ("download/refcoco",)),
        "keep": Preparation(_keep),
    }
    preparation: Preparation = pick(kind, kinds, "kind of preparation", where)
    for role in preparation.roles:
        if role not in roles:
            raise UserError(f"{where}: '{kind}' needs a file with the role '{role}'; {nearest(role, roles)}")
    return preparation


def _keep(files: dict[str, Path], out: Path) -> list[str]:
    for path in files.values():
        _place(path, out / path.name)
    return [path.name for path in files.values()]


def _collect(name: str, entry: Entry, archives: Path, out: Path, given: Sequence[Path]) -> dict[str, Archive]:
    """Return all files of an entry by role: those that the user has, and the rest from the mirrors."""
    collected = dict(_accept(name, entry, path, archives) for path in given)
    missing = {role: file for role, file in entry.files.items() if role not in collected}
    _require_space(name, entry, missing.values(), archives, out)
    for role, file in missing.items():
        try:
            collected[role] = download(file, archives / file.name)
        except UserError as error:
            how = " ".join((entry.by_hand or f"get {file.name} by hand").split()).rstrip(".")
            option = f"--from-archive FOLDER/{(*file.aliases, file.name)[0]}"
            raise UserError(f"{error}; {how}, then run: vpd fetch {name} {option}") from None
    return collected


def _accept(name: str, entry: Entry, path: Path, archives: Path) -> tuple[str, Archive]:
    """Recognise a file that the user has by its name, and put it among the archives."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a file that was downloaded by hand")
    for role, file in entry.files.items():
        if path.name in (file.name, *file.aliases):
            target = archives / file.name
            try:
                archive = Archive(target, "given", verify(path, file))
            except Rejected as reason:
                raise UserError(f"{path} is not {target.name}: {reason}; get the right file") from None
            _place(path, target)
            Part(target).discard()
            return role, archive
    known = ", ".join(file.name for file in entry.files.values())
    raise UserError(f"{path} is no file of {name}, which needs {known}; rename it if it is one of them")


def _place(path: Path, target: Path) -> None:
    """Put ``path`` at ``target`` too: a hard link on the same disk, a copy elsewhere."""
    if target.exists() and target.samefile(path):
        return
    with atomic_path(target) as temporary:
        temporary.unlink(missing_ok=True)  # a killed job may have left a link there, and a copy would write through it
        try:
            os.link(path.resolve(), temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _require_space(name: str, entry: Entry, missing: Iterable[FileSource], archives: Path, out: Path) -> None:
    """Check the disks for downloads and tree before hours of downloading, not after."""
    needs = []
    for file in missing:
        target = archives / file.name
        present = target.stat().st_size if target.is_file() else Part(target).size()
        needs.append((archives, max(file.expected_size - present, 0), f"downloading {file.name}"))
    linked = entry.prepare == "keep" and existing(archives).stat().st_dev == existing(out).stat().st_dev
    require_space([*needs, (out, 0 if linked else entry.prepared, f"preparing {name}")])


def listing(sources: Path | None, archives: Path) -> str:
    """What can be fetched: name, bytes to download and on disk, terms, and whether they are accepted."""
    catalogue = load_sources(sources)
    lines = [f"{'name':15} {'download':>9} {'on disk':>9}  terms"]
    for name, entry in catalogue.entries.items():
        size = sum(file.expected_size for file in entry.files.values())
        date = acceptance(entry.licence, archives)
        terms = f"{catalogue.licences[entry.licence].name}, {f'accepted {date}' if date else 'not accepted yet'}"
        lines.append(f"{name:15} {amount(size) if size else 'unknown':>9} {amount(entry.prepared):>9}  {terms}")
    return "\n".join([*lines, "", "vpd fetch NAME shows the terms, and with --accept-licence it downloads."])
