"""Files of a Stable Diffusion checkpoint or of a backbone from the Hugging Face hub, complete and as pinned.

``huggingface_hub`` does the transfer and keeps its cache. It reads HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from vpd.config.schema import BackboneSpec, CheckpointSpec
from vpd.pretrained.transfer_lines import TransferLines
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.progress import track

DEFAULT_REVISION = "main"
CURE = "add a repository that has the files to mirrors, or set source: folder and the path of a copy"
FULL_DIGEST = re.compile(r"[0-9a-f]{64}")
GONE = (
    errors.RepositoryNotFoundError,
    errors.DisabledRepoError,
    errors.RevisionNotFoundError,
    errors.EntryNotFoundError,
)
"""What another repository with the same files can cure; a gated repository, which is among them, is asked about first."""
UNWELCOME = (401, 403)


class NotThereError(Exception):
    """One repository lacks what is wanted; a mirror may have it."""


@dataclass(frozen=True)
class Snapshot:
    """Downloaded files under ``folder``, and the repository and commit that they are of."""

    folder: Path
    repo: str
    revision: str


def download(
    name: str,
    spec: CheckpointSpec | BackboneSpec,
    wanted: Sequence[str],
    needed: Sequence[str] = (),
    *,
    section: str = "checkpoints",
    cure: str = CURE,
) -> Snapshot:
    """Fetch the files named in ``wanted`` that ``spec.repo``, or the first mirror that is still there, has.

    ``needed`` are those that it must have. Files in the cache are not fetched again. UserError for the line ``name`` of
    params.yaml's ``section``, with ``cure``, if they cannot be had.
    """
    if spec.repo is None:
        raise UserError(f"{section}.{name} has source '{spec.source}' but no repo; name one, such as owner/model")
    faults = []
    for repo, revision in _places(spec):
        try:
            return _snapshot(repo, revision, wanted, needed)
        except NotThereError as fault:
            faults.append(str(fault))
    raise UserError(f"{section}.{name}: {'; '.join(faults)}; {cure}")


def _places(spec: CheckpointSpec | BackboneSpec) -> Iterator[tuple[str, str]]:
    """Repository and revision of the first choice, then of every mirror (``owner/model`` or ``owner/model@commit``)."""
    yield spec.repo, spec.revision or DEFAULT_REVISION
    for mirror in spec.mirrors:
        repo, _, revision = mirror.partition("@")
        yield repo, revision or DEFAULT_REVISION


def _snapshot(repo: str, revision: str, wanted: Sequence[str], needed: Sequence[str]) -> Snapshot:
    bars = {} if sys.stderr.isatty() else {"tqdm_class": TransferLines}
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted), **bars))
    except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise _explained(error, repo, revision) from None
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise NotThereError(f"{repo} has no {', no '.join(missing)} at revision {revision}")
    return Snapshot(folder, repo, folder.name)


# --------------------------------------------------------------------------------------------------------------- errors
def _explained(error: Exception, repo: str, revision: str) -> Exception:
    """Say what went wrong and what to do: a NotThereError where a mirror may help, else a UserError."""
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.HFValidationError):
        return UserError(
            f"'{repo}' is no name of a hub repository; write owner/model, such as CompVis/stable-diffusion-v1-4"
        )
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repo} gives its files only to those who accepted its licence; open {page}, accept it, make a token "
            "and set HF_TOKEN to it"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _unreached(error, repo, revision)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotThereError(f"{repo} has no revision {revision}")
    if isinstance(error, GONE):
        return NotThereError(f"{repo} is not at {page}, or is private")
    return _refused(error, repo, page)


def _unreached(error: Exception, repo: str, revision: str) -> Exception:
    cache = constants.HF_HUB_CACHE
    if constants.HF_HUB_OFFLINE:
        return NotThereError(f"{repo} at {revision} is not complete in {cache}, and HF_HUB_OFFLINE forbids to fetch it")
    if isinstance(error.__cause__, errors.HfHubHTTPError):
        return _explained(error.__cause__, repo, revision)
    if isinstance(error.__cause__, errors.FileMetadataError):
        return UserError(
            f"{constants.ENDPOINT} does not answer as the hub does; check HF_ENDPOINT and the network's proxy"
        )
    return UserError(
        f"{constants.ENDPOINT} cannot be reached and {repo} at {revision} is not complete in {cache}; check the network, "
        "or set HF_ENDPOINT to a mirror of the hub"
    )


def _refused(error: Exception, repo: str, page: str) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in UNWELCOME:
        return UserError(
            f"the hub refuses {repo} to you (HTTP {status}); open {page}, and set HF_TOKEN to a valid token"
        )
    if status is not None:
        return UserError(f"the hub answers {page} with HTTP {status}; try again later, or set HF_ENDPOINT to a mirror")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(
            f"cannot store {repo} in {constants.HF_HUB_CACHE}: {error.strerror}; free some space, or set HF_HOME to "
            "a folder on another disk"
        )
    reason = " ".join(str(error).split())
    return UserError(f"the download of {repo} broke off ({reason}); run it again to go on where it stopped")


# -------------------------------------------------------------------------------------------------------------- digests
def kept_digests(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """SHA-256 digests under which the cache keeps the large files of a snapshot: what the hub says they are."""
    blobs = {file: (folder / file).resolve().name for file in files}
    return {file: name for file, name in blobs.items() if FULL_DIGEST.fullmatch(name)}


def checked_digests(where: str, folder: Path, files: Sequence[str]) -> dict[str, str]:
    """SHA-256 digests of ``files``; UserError for ``where`` if a large one's bytes are not what the hub says they are."""
    kept = kept_digests(folder, files)
    found = {file: sha256(folder / file) for file in track(files, len(files), f"check {where}", "files")}
    for file, digest in kept.items():
        if found[file] != digest:
            blob = (folder / file).resolve()
            raise UserError(
                f"{where}: {file} has sha256 {found[file]}, expected {digest}; delete {blob} and fetch it again"
            )
    return found
