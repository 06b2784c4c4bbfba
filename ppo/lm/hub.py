"""Files of a hub id, by the hub's own client: cache, token, revision, and one line about whatever goes wrong.

``owner/name`` is the newest state of a repository. ``owner/name@revision`` is that of a branch, a tag or a commit, as
in ``hf://`` paths. The client looks for a token in HF_TOKEN, or where ``hf auth login`` put it. This module knows no
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_NOT_OURS = ("*/*", "consolidated*")  # the same weights a second time, in their makers' format
_TOKEN = "set HF_TOKEN or run `hf auth login`"


@dataclass(frozen=True)
class Source:
    """A folder, or a repository of the hub; made by :func:`find`.

    ``unreachable``: why the hub could not be asked, so that only its cache is looked into; None where it answered.
    ``failure`` and ``remedy``: how an error begins, and how it ends where nothing more exact is known.
    """

    name: str
    revision: str | None
    unreachable: Exception | None
    failure: str
    remedy: str

    def files(self, *patterns: str) -> Path:
        """The folder itself, or a folder with the files that match ``patterns``, downloaded if need be."""
        if Path(self.name).is_dir():
            return Path(self.name)
        try:
            folder = snapshot_download(
                self.name,
                revision=self.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_OURS),
                local_files_only=self.unreachable is not None,
            )
        except Exception as error:  # the client's own, its HTTP library's, and the disk's
            reason, exact = _explained(error, self.revision, self.unreachable)
            raise ValueError(f"{self.failure}: {reason}; {exact or self.remedy}") from (self.unreachable or error)
        return Path(folder)

    def model(self) -> Path:
        """The folder of a model and its tokenizer. PyTorch's own weights come only where there are no safetensors."""
        folder = self.files(*_FILES)
        if Path(self.name).is_dir() or any(folder.glob("*.safetensors")):
            return folder
        return self.files(*_FILES, "pytorch_model*.bin")


def find(source: str | Path, *, failure: str, remedy: str) -> Source:
    """The folder or the hub id ``source``. Its methods raise ValueError of one line: ``failure``, reason, remedy.

    The hub is asked once, and for HF_HUB_ETAG_TIMEOUT seconds at most (10 by default): a network that swallows every
    packet would keep a download waiting for minutes.
    """
    if Path(source).is_dir():
        return Source(str(source), None, None, failure, remedy)
    name, has_revision, revision = str(source).partition("@")
    if has_revision and not revision:
        raise ValueError(f"{failure}: no revision follows its @; name a branch, a tag or a commit, or leave the @ out")
    return Source(name, revision or None, _unreachable(name, revision or None), failure, remedy)


def _unreachable(name: str, revision: str | None) -> Exception | None:
    """Why the hub cannot be asked; None where it answers, be it with an error, which the download meets again."""
    try:
        HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return None
    except Exception as error:  # of the HTTP library, which differs between versions of the client
        return error
    return None


def _explained(error: Exception, revision: str | None, unreachable: Exception | None) -> tuple[str, str | None]:
    """Why a download failed, and what to do about it; None where that is not known."""
    match error:
        case GatedRepoError():
            return "it is gated", f"accept its terms on its page, then {_TOKEN} with the account that did"
        case RepositoryNotFoundError():
            return (
                "there is no such folder, and no such repository on the hub that this token may see",
                f"check the name; for a private repository {_TOKEN}",
            )
        case RevisionNotFoundError():
            return f"it has no revision {revision!r}", "name a branch, a tag or a commit of it"
        case HFValidationError():
            return "there is no such folder, and it is no hub id (name or owner/name)", None
        case LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return (
                "there is no such folder, and HF_HUB_OFFLINE allows the cache only, which lacks it",
                "unset HF_HUB_OFFLINE once, or give a folder",
            )
        case LocalEntryNotFoundError():
            cause = _one_line(unreachable or error.__cause__ or error)
            return (
                f"there is no such folder, it is not in the cache, and the hub cannot be asked ({cause})",
                "check the network, or give a folder",
            )
    return _one_line(error), None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
