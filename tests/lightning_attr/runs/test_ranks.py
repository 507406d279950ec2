"""How the ranks of a run end."""

from pathlib import Path

import lightning.pytorch as pl
from torch import distributed

from lightning_attr.runs.ranks import ending_together, leave_group


def test_connections_are_closed_at_the_end(tmp_path: Path) -> None:
    """Gloo's threads would abort a process that ends while they still hold tensors."""
    with ending_together(pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False)):
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
        distributed.barrier()
    assert not distributed.is_initialized()
    leave_group()  # nothing is left to close
