"""Where a checkpoint lies: a folder, or a name on the Hugging Face hub that is downloaded once."""

import dataclasses
from pathlib import Path

from ablax.config import RequestError

WANTED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
"""Files that are downloaded: no pickles and no code."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Attributes:
      name: as it was asked for.
      folder: where its files are.
      revision: the commit on the hub; None for a folder.
    """

    name: str
    folder: Path
    revision: str | None


def locate(name: str, revision: str | None = None) -> Source:
    """Finds a checkpoint; a folder of that name comes first.

    Args:
      revision: branch, tag or commit on the hub; None = main. The commit is what is recorded.

    Raises:
      RequestError: if there is none, or it cannot be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise RequestError(
                f"{folder} is a folder and has no revision {revision!r}; leave it out"
            )
        return Source(name, folder.resolve(), None)
    if folder.exists() or name.count("/") > 1 or name[:1] in ("/", ".", "~"):
        raise RequestError(f"{name} is no folder, and no name on the hub (OWNER/NAME)")
    found = _download(name, revision)
    return Source(name, found, found.name)


def _download(name: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise RequestError(
            f"{name} is no folder, and huggingface_hub is not installed to look for it on the hub; "
            "pip install 'ablax[hf]', or give a folder"
        ) from None
    at = f" at revision {revision}" if revision else ""
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED)
        )
        return Path(found)
    except errors.LocalEntryNotFoundError:
        raise RequestError(
            f"{name}{at} is neither a folder nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE "
            "is set); download it where there is a network, or give a folder"
        ) from None
    except errors.GatedRepoError:
        raise RequestError(
            f"{name} is on the hub and wants its terms accepted: accept them there, then `hf auth login`"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        line = next(
            (text for text in str(error).splitlines() if text.strip()), type(error).__name__
        )
        raise RequestError(
            f"{name}{at} cannot be had from the hub ({line}); check the name"
        ) from error
