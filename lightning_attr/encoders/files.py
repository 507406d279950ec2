"""Where encoders of the libraries lie, and whether they are what is expected."""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import xxhash
from torch import nn

from lightning_attr.errors import UserError, quoted, shortened
from lightning_attr.extras import optional


def transformers_of(what: str, source: str) -> Any:
    """Import transformers, which is slow and optional.

    Raises:
        UserError: It is not installed.
    """
    transformers = optional("transformers", "hf", f"{what} {source}")
    speaks = import_module("transformers.utils.logging")
    speaks.disable_progress_bar()  # of reading weights, one line a model
    speaks.set_verbosity_error()  # it warns of torchvision, which nothing here needs
    return transformers


def check_missing(what: str, missing: Iterable[str]) -> None:
    """Refuse a model whose files lack weights, which the libraries draw at random."""
    if names := sorted(missing):
        raise UserError(f"{what}: found no weights {names[0]}, expected all that the model has")


def here(kind: str, source: str, part: str) -> str:
    """Return the folder on this machine of what a store names, in the hub's cache if need be.

    The libraries are then given a folder: with a name, they reach out even where they are told not to.

    Raises:
        UserError: It is not there.
    """
    if Path(source).is_dir():
        return source
    found = import_module("huggingface_hub").try_to_load_from_cache(source, f"{part}/config.json".lstrip("/"))
    if not isinstance(found, str):
        raise UserError(
            f"{kind} {quoted(source)}: found nothing of that name on this machine, and a store that names it downloads "
            f"nothing; fetch it first: hf download {shlex.quote(shortened(source, 80))}"
        )
    return str(Path(found).parents[1 if part else 0])


@contextmanager
def loading_of(kind: str, source: str) -> Iterator[None]:
    """Turn what the libraries raise for a wrong name, folder or file into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of a config that does not fit each model makes an error of its own
        reason = shortened(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
        raise UserError(
            f"{kind} {shortened(source, 120)}: expected a hub name or a local folder with safetensors weights: {reason}"
        ) from error


def checked_digest(model: nn.Module, source: str, expected: str | None) -> str:
    """Return the digest of the model's weights.

    Raises:
        UserError: It is not the expected one.
    """
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    found = digest.hexdigest()
    if expected is not None and found != expected:
        raise UserError(f"{source}: the weights have digest {found}, expected {expected}: another model lies there now")
    return found
