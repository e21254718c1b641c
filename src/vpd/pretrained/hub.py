"""Files of a model repository on the Hugging Face hub: of one commit, complete, and with the digests that the hub states.

``huggingface_hub`` downloads and caches. It reads HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, snapshot_download
from tqdm import tqdm

from vpd.config.schema import BackboneSpec, CheckpointSpec, ReleasedSpec
from vpd.pretrained.tensors import reason
from vpd.utils.digests import digests
from vpd.utils.errors import UserError
from vpd.utils.progress import SECONDS_BETWEEN_LINES, clock

CURE = "add a repository that has the files to mirrors, or set source: folder and the path of a copy"
SHA256 = re.compile(r"[0-9a-f]{64}")
MEGABYTE = 1e6


@dataclass(frozen=True)
class Snapshot:
    """Downloaded files under ``folder``, with the repository and commit that they come from."""

    folder: Path
    repo: str
    revision: str


class NotThereError(Exception):
    """A repository lacks the files; a mirror may have them."""


def repositories(where: str, spec: CheckpointSpec | BackboneSpec | ReleasedSpec) -> list[str]:
    """Return ``owner/model@revision`` of a spec's repository and of its mirrors; UserError if it names none."""
    if spec.repo is None:
        raise UserError(f"{where} has source 'hub' but no repo; name one, such as owner/model")
    return [f"{spec.repo}@{spec.revision or 'main'}", *spec.mirrors]


def download(
    where: str, repos: Sequence[str], wanted: Sequence[str], needed: Sequence[str] = (), cure: str = CURE
) -> Snapshot:
    """Download from the first repository that has the files.

    Files in the cache are not downloaded again, and an interrupted download goes on where it stopped.

    Args:
        where: the entry of params.yaml, such as ``checkpoints.sd-1-4``, for errors.
        repos: ``owner/model`` or ``owner/model@revision``, tried in order.
        wanted: files to download where they exist.
        needed: files that must exist.
        cure: what a user can do if no repository has them.

    Raises:
        UserError: no repository has the files, or the hub, the network or the disk fails.
    """
    faults = []
    for place in repos:
        repo, _, revision = place.partition("@")
        try:
            return _snapshot(repo, revision or "main", wanted, needed)
        except NotThereError as fault:
            faults.append(str(fault))
    raise UserError(f"{where}: {'; '.join(faults)}; {cure}")


def _snapshot(repo: str, revision: str, wanted: Sequence[str], needed: Sequence[str]) -> Snapshot:
    lines: dict[str, Any] = {} if sys.stderr.isatty() else {"tqdm_class": TransferLines}
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted), **lines))
    except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise _explained(error, repo, revision) from None
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise NotThereError(f"{repo} has no {', no '.join(missing)} at revision {revision}")
    return Snapshot(folder, repo, folder.name)


def checked_digests(where: str, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return SHA-256 digests of a snapshot's files, and compare those of large files with the hub's.

    The cache names a large file after the digest that the hub states; huggingface_hub itself does not compare them.

    Raises:
        UserError: a file has other bytes.
    """
    own = digests(folder, names)
    for name, digest in own.items():
        blob = (folder / name).resolve()
        if SHA256.fullmatch(blob.name) and blob.name != digest:
            raise UserError(
                f"{where}: {name} has sha256 {digest}, expected {blob.name}; delete {blob} and fetch it again"
            )
    return own


# --------------------------------------------------------------------------------------------------------------- errors
def _explained(error: Exception, repo: str, revision: str) -> Exception:
    """Say what went wrong and what to do: a NotThereError where a mirror may help, else a UserError."""
    page, cache = f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            text = f"'{repo}' is no name of a hub repository; write owner/model, such as CompVis/stable-diffusion-v1-4"
        # A gated repository counts as missing too, but a mirror must not be a way around its licence.
        case errors.GatedRepoError():
            text = (
                f"{repo} gives its files only to users who accepted its licence; open {page}, accept it, create a token "
                "and set HF_TOKEN to it"
            )
        case errors.LocalEntryNotFoundError():
            return _unreached(error, repo, revision)
        case errors.RevisionNotFoundError():
            return NotThereError(f"{repo} has no revision {revision}")
        case errors.RepositoryNotFoundError() | errors.DisabledRepoError() | errors.EntryNotFoundError():
            return NotThereError(f"{repo} is not at {page}, or is private")
        case _ if status in (401, 403):
            text = f"the hub refuses you {repo} (HTTP {status}); open {page}, and set HF_TOKEN to a valid token"
        case _ if status is not None:
            text = f"the hub answers {page} with HTTP {status}; try again later, or set HF_ENDPOINT to a mirror"
        case OSError(errno=int()):
            text = (
                f"cannot store {repo} in {cache}: {error.strerror}; free some space, or set HF_HOME to a folder on "
                "another disk"
            )
        case _:
            text = f"the download of {repo} broke off ({reason(error)}); run it again to go on where it stopped"
    return UserError(text)


def _unreached(error: Exception, repo: str, revision: str) -> Exception:
    """Explain why huggingface_hub fell back to its cache and did not find all files there."""
    endpoint, cause = constants.ENDPOINT, error.__cause__
    incomplete = f"{repo} at {revision} is not complete in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return NotThereError(f"{incomplete}, and HF_HUB_OFFLINE forbids downloads")
    if isinstance(cause, errors.HfHubHTTPError):
        return _explained(cause, repo, revision)
    if isinstance(cause, errors.FileMetadataError):
        return UserError(f"{endpoint} does not answer as the hub does; check HF_ENDPOINT and the network's proxy")
    return UserError(
        f"{endpoint} cannot be reached and {incomplete}; check the network, or set HF_ENDPOINT to a mirror of the hub"
    )


# ------------------------------------------------------------------------------------------------------------- progress
class TransferLines(tqdm):
    """Progress of a download as plain lines for logs, where huggingface_hub would print nothing for hours."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.began = self.last = time.monotonic()
        # The library counts bytes twice: received ("Downloading ...") and written. Its other bars count files.
        self.counts_bytes = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading")
        super().__init__(*args, **options | {"file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line of megabytes, rate and time left, at most every ten seconds."""
        now = time.monotonic()
        if self.counts_bytes and self.n and now - self.last >= SECONDS_BETWEEN_LINES:
            self.last, total = now, self.total or self.n
            rate = self.n / (now - self.began)
            done, left = f"{self.n / MEGABYTE:.0f}/{total / MEGABYTE:.0f} MB", clock(max(0.0, total - self.n) / rate)
            print(f"download: {done}, {rate / MEGABYTE:.1f} MB/s, {left} left", file=sys.stderr)
        return True
