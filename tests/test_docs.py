"""README and docs: short, linked to what exists, and with code that works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from miniature import Project

from lightning_attr.main import STAGES, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [each for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert "make demo" in text
    assert "make test" in text


def test_all_pages_are_in_the_site() -> None:
    assert set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())) == {page.name for page in PAGES[2:]}


#: The pages that say how something is done: each has its way from Python.
GUIDES = [page for page in PAGES[2:] if page.stem not in ("results", "measured", "promises")]


@pytest.fixture
def folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is: in the repository, after the demo, with images of their own prepared."""
    for name in ("configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("demo", "own"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for path in project.root.iterdir():
            (tmp_path / "runs" / name / path.name).symlink_to(path)
    (tmp_path / "runs/demo/curvature_ekfac").symlink_to(project.root / "curvature")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_code_prints_what_the_page_says(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```(?:\n\nprints\n\n```\n(.*?)```)?", page.read_text(), flags=re.DOTALL)
    assert blocks
    names = {"__name__": "__main__"}
    for code, said in blocks:
        capsys.readouterr()
        exec(code, names)
        assert said in ("", capsys.readouterr().out)


def commands(page: Path) -> list[str]:
    """The commands of a page, with what a loop puts into them."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("$q", "0").splitlines()
    return [line.strip() for line in lines if "lightning-attr " in line]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page)}))
def test_commands_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, *words = shlex.split(command, comments=True)
    stage = words[0] in STAGES
    options = [word.partition(".")[0] for word in words if re.match("--?[a-z]", word)]
    before = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"] if stage else [*words[:before], "--help"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert stage or all(re.search(rf"{option}\b", said.out) for option in options)
