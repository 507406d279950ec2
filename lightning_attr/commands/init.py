"""Write the configs of an experiment where you are: ``lightning-attr init EXPERIMENT FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lightning_attr.artifacts import write_atomically
from lightning_attr.console import command, made
from lightning_attr.errors import UserError
from lightning_attr.options import parsed, parser

METHODS = "methods"


def main(arguments: Sequence[str]) -> None:
    """Copy an experiment's configs and the methods' into a folder, whose name takes the place of theirs."""
    of = parser("init", __doc__)
    of.add_argument("experiment", help="such as demo, coco64, shapes or mscoco")
    of.add_argument("folder", type=Path, help="the folder to make")
    options = parsed(of, arguments)
    shipped = Path(str(files("lightning_attr"))) / "configs"
    known = sorted(path.name for path in shipped.iterdir() if (path / "train.yaml").is_file())
    if options.experiment not in known:
        raise UserError(f"experiment: found {options.experiment!r}, expected one of {', '.join(known)}")
    if options.folder.exists():
        raise UserError(f"{options.folder}: found it there already, expected a folder that is to be made")
    for source, target in ((options.experiment, options.folder), (METHODS, options.folder / METHODS)):
        for config in sorted((shipped / source).glob("*.yaml")):
            text = config.read_text().replace(f"configs/{METHODS}/", f"{options.folder / METHODS}/")
            text = text.replace(f"configs/{options.experiment}/", f"{options.folder}/")
            write_atomically(target / config.name, text.encode())
    train = command("fit", "-c", options.folder / "train.yaml")
    made([options.folder, options.folder / METHODS], f"make the stores that they name, then {train}")
