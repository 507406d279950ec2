"""The page in a browser, at the width of a phone and of a desk."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import QUERIES, Builder

from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed")

PHONE, DESK = 360, 1280
LONG = "a-caption-that-is-one-very-long-word-without-any-place-to-break-it-" * 3
PROBE = """
const panels = () => [...document.querySelectorAll('.tabs')].map(
  tabs => [...tabs.querySelectorAll('.panel')].map(panel => panel.offsetHeight > 0));
const before = panels();
document.querySelectorAll('.tabs > label:nth-of-type(2)').forEach(label => label.click());
document.querySelectorAll('details').forEach(details => details.open = true);
document.querySelectorAll('img').forEach(image => image.loading = 'eager');
const root = document.documentElement;
const broken = () => [...document.images].filter(image => !image.complete || !image.naturalWidth).length;
const square = [...document.querySelectorAll('.grid .picture, .beside .picture')]
  .map(picture => picture.getBoundingClientRect()).filter(box => box.height > 0)
  .every(box => Math.abs(box.width - box.height) <= 1);
const tell = () => parent.postMessage(JSON.stringify({
  width: innerWidth, needed: root.scrollWidth, before, after: panels(), broken: broken(), square,
  loaded: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
}), '*');
addEventListener('load', () => setTimeout(tell, 200));
"""


def chromium(tmp_path: Path, page: Path, width: int, *flags: str) -> str:
    """Run headless, with a new profile and no way to the network."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1500", "--virtual-time-budget=5000", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def framed(tmp_path: Path, html: str, width: int) -> Path:
    """Put the page into a frame, since a window has a least width; what the page tells is written below it."""
    (tmp_path / "page.html").write_text(html)
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<!doctype html><body style='margin:0'>"
        f"<iframe src='page.html' style='border:0;width:{width}px;height:1500px'></iframe><pre></pre>"
        "<script>addEventListener('message', m => document.querySelector('pre').textContent = m.data)</script>"
    )
    return frame


def probe(tmp_path: Path, html: str, width: int) -> dict[str, Any]:
    """What a script of ours finds in a copy of the page that allows scripts."""
    html, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert policies == 1
    page = framed(tmp_path, html.replace("</body>", f"<script>{PROBE}</script></body>"), width)
    found = re.search(r"<pre>(.*?)</pre>", chromium(tmp_path, page, max(width, 600), "--dump-dom"), re.DOTALL)
    assert found is not None
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_fits_and_works(whole: Builder, tmp_path: Path, width: int) -> None:
    html = (
        render(collect(whole.root))
        .replace("caption number 3<", f"{LONG}<")
        .replace("top 8<", f"{LONG}<")
        .replace(">noise<", f">{LONG}<")
    )
    assert html.count(LONG) > 2
    found = probe(tmp_path, html, width)
    assert found["width"] == width
    assert found["needed"] <= width
    assert found["before"] == [[True, False]] * 4
    assert found["after"] == [[False, True]] * 4
    assert found["broken"] == 0
    assert found["square"]
    assert found["loaded"] == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_an_unfinished_run_fits(builder: Builder, tmp_path: Path, width: int) -> None:
    builder.stage("train", "fit", "LatentDiffusion", finish=False)
    found = probe(tmp_path, render(collect(builder.root)), width)
    assert (found["width"], found["needed"]) == (width, width)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_sixteen_rankings_fit(builder: Builder, many: dict[str, Scores], tmp_path: Path, width: int) -> None:
    others = 16 - len(many)
    for number in range(others):
        builder.scores(builder.root / f"more/{number}.safetensors", f"a-method-with-a-long-name-{number}", QUERIES)
    found = probe(tmp_path, render(collect(builder.root)), width)
    assert found["width"] == width
    assert found["needed"] <= width
    assert found["square"]
    assert found["before"] == [[True] + [False] * 15] * len(QUERIES)


@pytest.mark.parametrize(("scheme", "dark"), [("0", True), pytest.param("1", False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [PHONE, pytest.param(DESK, marks=pytest.mark.slow)])
def test_is_drawn_light_and_dark(whole: Builder, tmp_path: Path, width: int, scheme: str, dark: bool) -> None:
    page = framed(tmp_path, render(collect(whole.root)), width)
    shot = tmp_path / "shot.png"
    flags = [f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}"]
    chromium(tmp_path, page, width, *flags)
    pixels = np.asarray(Image.open(shot).convert("RGB"))[:, :width]
    ground = pixels[2, 2]
    assert (ground.max() < 60) if dark else (ground.min() > 200)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 300  # photographs, not only text
    drawn = (np.abs(pixels.astype(int) - ground) > 40).any(axis=2)
    assert drawn.mean() > 0.03


def test_nothing_is_asked_of_the_network(whole: Builder, tmp_path: Path) -> None:
    """Not even of the hosts that credits link to."""
    (tmp_path / "page.html").write_text(render(collect(whole.root)))
    log = tmp_path / "net.json"
    chromium(tmp_path, tmp_path / "page.html", DESK, "--dump-dom", f"--log-net-log={log}")
    text = log.read_text()
    assert '"constants"' in text
    assert "example.org" not in text
    assert "creativecommons" not in text
