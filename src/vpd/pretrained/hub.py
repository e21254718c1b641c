"""Files of a model repository on the hub: of one commit, complete, unaltered. HF_HOME, HF_ENDPOINT and the like hold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from vpd.config.schema import BackboneSpec, CheckpointSpec, ReleasedSpec
from vpd.utils.digests import digests
from vpd.utils.errors import UserError
from vpd.utils.tensors import reason

CURE = "add a repository that has the files to mirrors, or set source: folder and the path of a copy"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """Files of a model repository: of one commit on the hub, downloaded on demand, or of a copy in a folder."""

    entry: str  # the entry of params.yaml that asks for it, such as ``checkpoints.sd-1-4``, for errors
    folder: Path
    repo: str | None = None
    revision: str | None = None  # a commit; None for a copy

    def __str__(self) -> str:
        return f"{self.entry}: {f'{self.repo} at revision {self.revision}' if self.repo else self.folder}"

    @property
    def origin(self) -> dict[str, str]:
        """``repo`` and ``revision``; empty for a copy."""
        return {"repo": self.repo, "revision": self.revision} if self.repo and self.revision else {}

    def bring(self, wanted: Sequence[str], needed: Sequence[str] = ()) -> list[str]:
        """Download those of ``wanted`` that exist and return them; UserError if one of ``needed`` does not."""
        if self.repo:
            download(self.entry, [f"{self.repo}@{self.revision}"], wanted)
        if missing := [name for name in needed if not (self.folder / name).is_file()]:
            raise UserError(f"{self} has no {', no '.join(missing)}; name a repository that has, or a whole copy")
        return [name for name in wanted if (self.folder / name).is_file()]

    def check(self, names: Sequence[str]) -> None:
        """Refuse a large file that does not have the SHA-256 digest that the hub states; huggingface_hub does not."""
        # The cache names a large file after that digest.
        for name, digest in digests(self.folder, names).items():
            blob = (self.folder / name).resolve()
            if self.repo and SHA256.fullmatch(blob.name) and blob.name != digest:
                raise UserError(
                    f"{self.entry}: {name} has sha256 {digest}, expected {blob.name}; delete {blob} and fetch it again"
                )


def repositories(entry: str, spec: CheckpointSpec | BackboneSpec | ReleasedSpec) -> list[str]:
    """Return ``owner/model@revision`` of a spec's repository and of its mirrors; UserError if it names none."""
    if spec.repo is None:
        raise UserError(f"{entry} has source 'hub' but no repo; name one, such as owner/model")
    return [f"{spec.repo}@{spec.revision or 'main'}", *spec.mirrors]


def download(
    entry: str, repos: Sequence[str], wanted: Sequence[str], needed: Sequence[str] = (), cure: str = CURE
) -> Repository:
    """Download from the first of ``repos`` (``owner/model@revision``) that has the files; the cache is used first.

    Files in ``wanted`` may exist, those in ``needed`` must. UserError, with ``cure`` if no repository has them.
    """
    faults = []
    for place in repos:
        repo, _, commit = place.partition("@")
        revision = commit or "main"
        try:
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
        except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
            fault = _explained(error, repo, revision)
            if not isinstance(fault, NotThereError):
                raise fault from None
            faults.append(str(fault))
            continue
        missing = [name for name in needed if not (folder / name).is_file()]
        if not missing:
            return Repository(entry, folder, repo, folder.name)
        faults.append(f"{repo} has no {', no '.join(missing)} at revision {revision}")
    raise UserError(f"{entry}: {'; '.join(faults)}; {cure}")


class NotThereError(Exception):
    """A repository lacks the files; a mirror may have them."""


def _explained(error: Exception, repo: str, revision: str) -> Exception:
    """Say what went wrong and what to do: a NotThereError where a mirror may help, else a UserError."""
    endpoint, page, cache = constants.ENDPOINT, f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
    incomplete = f"{repo} at {revision} is not complete in {cache}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            text = f"'{repo}' is no name of a hub repository; write owner/model, such as CompVis/stable-diffusion-v1-4"
        # A gated repository counts as missing too, but a mirror must not be a way around its licence.
        case errors.GatedRepoError():
            text = f"{repo} is gated; open {page}, accept its licence, create a token and set HF_TOKEN to it"
        # huggingface_hub fell back to its cache and did not find all files there.
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return NotThereError(f"{incomplete}, and HF_HUB_OFFLINE forbids downloads")
        case errors.LocalEntryNotFoundError(__cause__=errors.HfHubHTTPError() as cause):
            return _explained(cause, repo, revision)
        case errors.LocalEntryNotFoundError():
            text = f"{endpoint} cannot be reached and {incomplete}; check the network, or set HF_ENDPOINT to a mirror"
        case errors.RevisionNotFoundError():
            return NotThereError(f"{repo} has no revision {revision}")
        case errors.RepositoryNotFoundError() | errors.DisabledRepoError() | errors.EntryNotFoundError():
            return NotThereError(f"{repo} is not at {page}, or is private")
        case _ if status in (401, 403):
            text = f"the hub refuses you {repo} (HTTP {status}); open {page}, and set HF_TOKEN to a valid token"
        case _ if status is not None:
            text = f"the hub answers {page} with HTTP {status}; try again later, or set HF_ENDPOINT to a mirror"
        case OSError(errno=int()):
            text = f"cannot store {repo} in {cache}: {error.strerror}; free some space, or set HF_HOME to another disk"
        case _:
            text = f"the download of {repo} broke off ({reason(error)}); run it again to go on where it stopped"
    return UserError(text)
