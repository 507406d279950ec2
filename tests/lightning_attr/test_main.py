"""One command: its verbs, and how each ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_attr.main import COMMANDS, STAGES, main


def ended(args: list[str]) -> int:
    with pytest.raises(SystemExit) as status:
        main(args)
    return int(str(status.value.code))


def test_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {verb} " in printed for verb in (*STAGES, *COMMANDS))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train"], "found 'train', expected one of fit"),
        (["prepare", "photos"], "prepare: found 'photos', expected one of coco"),
        (["prepare", "shapes", "--out", "x.lmdb", "--count", "many"], "count"),
        (["prepare", "shapes"], "out"),
        (
            ["prepare", "coco", "--images", ".", "--captions", "a", "--out", "b", "--image_encoder.patch", "many"],
            "Parser key \"patch\": Expected a <class 'int'>. Got value: many",
        ),
        (
            ["prepare", "coco", "--images", ".", "--captions", "a", "--out", "b", "--image_encoder", "Foo"],
            "image_encoder: found 'Foo', expected one of PatchPCA, AutoencoderKLEncoder",
        ),
        (
            ["prepare", "coco", "--images", ".", "--captions", "a", "--out", "b", "--text_encoder", "PatchPCA"],
            "text_encoder: found 'PatchPCA', expected one of HashedWords, CLIPText",
        ),
        (["report", "none"], "none: no such folder"),
        (["init", "nothing", "mine"], "experiment: found 'nothing', expected one of base, coco64, demo"),
        (["evaluate", "none"], "none.json"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(args) == 1
    complaint = capfd.readouterr().err
    assert complaint.startswith("error: ")
    assert message in complaint
    assert complaint.count("\n") == 1


def test_init_writes_configs_that_name_their_new_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(["init", "demo", "mine"]) == 0
    sweep = yaml.safe_load(Path("mine/sweep.yaml").read_text())["sweep"]
    assert sweep["train"] == ["mine/train.yaml"]
    assert Path("mine/methods/d_trak.yaml").is_file()
    assert not any("configs/" in path.read_text() for path in Path("mine").rglob("*.yaml"))
    assert ended(["init", "demo", "mine"]) == 1


def test_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "shapes", "--out", str(tmp_path / "a.lmdb"), "--count", "4", "--planted", "1"]
    assert ended([*words, "-q"]) == 0
    assert capfd.readouterr() == ("", "")
    assert ended(words) == 0
    assert "nothing to do" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    store = tmp_path / "a.lmdb"
    command = [sys.executable, "-m", "lightning_attr.main", "prepare", "shapes", "--out", str(store)]
    process = subprocess.Popen([*command, "--count", "20000"], stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    deadline = time.monotonic() + 120
    while not Path(f"{store}.partial").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == status
    assert complaint.count("\n") == 1
    assert "what is finished is kept" in complaint
    assert not store.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("words", [["fit"], ["inspect", "none"]])
def test_a_signal_while_imports_run_is_one_line(number: signal.Signals, status: int, words: list[str]) -> None:
    # The signal finds the process at its first import after the handlers are in place.
    code = f"""
import os, sys
from lightning_attr import main
class Sends:
    def find_spec(self, *names):
        os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Sends())
sys.argv[1:] = {words!r}
main.main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status
    assert ended.stderr in ("stopped\n", "interrupted\n")


def hear() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
