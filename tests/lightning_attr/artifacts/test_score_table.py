"""Files of scores by method and settings."""

import torch

from lightning_attr.artifacts.score_table import ScoreFile, ScoreTable
from lightning_attr.artifacts.scores import Scores


def scores(method: str, query: int, **settings: object) -> Scores:
    return Scores(torch.zeros(1, 2), torch.tensor([query]), torch.tensor([1, 2]), method, settings)


def test_one_method_with_two_settings_has_the_file_in_its_label() -> None:
    files = [
        ScoreFile("a", scores("trak", 0, projection=4)),
        ScoreFile("b", scores("trak", 0, projection=8)),
        ScoreFile("c", scores("random", 0)),
        ScoreFile("d", scores("trak", 1, projection=4)),
    ]
    found = {label: [file.path for file in group] for label, group in ScoreTable(files)}
    assert found == {"trak (a)": ["a", "d"], "trak (b)": ["b"], "random": ["c"]}
