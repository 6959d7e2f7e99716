"""Models from the Hugging Face hub; what is there already of a download is not fetched again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from glob import escape
from logging import CRITICAL
from pathlib import Path
from typing import TypeVar

from protocol.errors import ConfigError, MissingLibraryError, ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DIRECTORY_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*")
_N_NAMED = 8
_TIMEOUT_S = 15.0

T = TypeVar("T")


def is_hub_id(text: str) -> bool:
    """Whether `text` looks like `owner/name`."""
    return _HUB_ID.fullmatch(text) is not None


def download_model(
    hub_id: str,
    folder: Path,
    *,
    file: str | None = None,
    revision: str | None = None,
    shows_progress: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Fetch a model into `folder`; the GGUF file, or the folder when it is a Hugging Face directory.

    Args:
        file: the GGUF file wanted, where the repository has several.
        revision: branch, tag or commit; None for the newest.
        shows_progress: draw progress bars on stderr.
        endpoint: of another hub; None for the one of the environment.

    Raises:
        ConfigError: the repository has several GGUF files and none was named, or not the named one.
        ModelError: the hub is out of reach or refuses, or has no model of that id that can be used.
        MissingLibraryError: huggingface_hub is not installed.
    """
    _quieten(hub_id, shows_progress=shows_progress)
    from huggingface_hub import HfApi  # noqa: PLC0415 - an optional library

    hub = HfApi(endpoint=endpoint)
    about = _asked(hub_id, lambda: hub.model_info(hub_id, revision=revision, timeout=_TIMEOUT_S))
    wanted = _wanted(hub_id, [each.rfilename for each in about.siblings or ()], file)
    _asked(
        hub_id,
        lambda: hub.snapshot_download(
            hub_id, revision=about.sha, local_dir=folder, allow_patterns=[escape(name) for name in wanted]
        ),
    )
    return folder / wanted[0] if wanted[0].lower().endswith(".gguf") else folder


def _quieten(hub_id: str, *, shows_progress: bool) -> None:
    """Leave what happens to be said by our own errors, once."""
    try:
        from huggingface_hub.utils import logging  # noqa: PLC0415 - an optional library
        from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415 - the same
    except ImportError as error:
        raise MissingLibraryError(
            f"fetching {hub_id} needs huggingface_hub ({error})",
            hint="pip install huggingface_hub, or fetch the files yourself and add the directory or file",
        ) from error
    logging.set_verbosity(CRITICAL)
    if not shows_progress:
        disable_progress_bars()


def _wanted(hub_id: str, there: Sequence[str], file: str | None) -> tuple[str, ...]:
    """The names of the files to fetch; of a GGUF model one name."""
    there = [name for name in there if not name.startswith("/") and ".." not in name.split("/")]
    ggufs = [name for name in there if name.lower().endswith(".gguf")]
    if file is not None:
        if file not in ggufs:
            raise ConfigError(f"{hub_id} has no GGUF file {file!r}", hint=f"it has {_named(ggufs)}")
        return (file,)
    top = [name for name in there if "/" not in name]
    if "config.json" in top and any(name.endswith(".safetensors") for name in top):
        return tuple(
            name
            for name in top
            if any(fnmatch(name, pattern) for pattern in _DIRECTORY_FILES)
            and not name.startswith("consolidated")
        )
    if len(ggufs) == 1:
        return (ggufs[0],)
    if ggufs:
        raise ConfigError(
            f"{hub_id} has {len(ggufs)} GGUF files", hint=f"choose one with --file: {_named(ggufs)}"
        )
    raise ModelError(
        f"{hub_id} has neither safetensors with a config.json nor a GGUF file",
        hint="choose another repository; sled models list names some",
    )


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_N_NAMED])
    return f"{shown}, ..." if len(names) > _N_NAMED else shown or "none"


def _asked(hub_id: str, ask: Callable[[], T]) -> T:
    """What the hub answers.

    Raises:
        ModelError: it does not answer, or refuses.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - an optional library

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is given only to those who have accepted its licence",
            hint=f"accept it at huggingface.co/{hub_id}, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face hub has no {hub_id}, or it is private",
            hint="check the id; for a private one: hf auth login",
        ) from error
    except (OSError, ValueError, _transport_error()) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{hub_id} cannot be fetched from the Hugging Face hub: {said:.160}",
            hint="check the network and try again, what has come is kept; or add files that are here",
        ) from error


def _transport_error() -> type[Exception]:
    """What the hub's HTTP library raises; which one that is differs between versions of the hub."""
    from huggingface_hub import errors  # noqa: PLC0415 - an optional library

    raised: type[Exception] = getattr(errors, "HTTPError", OSError)
    return raised
