"""A tiny network in an ONNX file, written byte by byte: ``onnx`` is not needed to read one, nor here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Value = int | bytes | str


def message(*fields: tuple[int, Value]) -> bytes:
    """A protobuf message of fields by their numbers: whole numbers, texts, or other messages."""
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def _tensor(name: str, shape: Sequence[int | str]) -> bytes:
    sizes = [(1, message((1, size) if isinstance(size, int) else (2, size))) for size in shape]
    return message((1, name), (2, message((1, message((1, 1), (2, message(*sizes)))))))


def save_network(path: Path, shape: Sequence[int | str] = ("N", 3, 8, 8)) -> Path:
    """Save a network that averages its picture's channels, ``pooled``, and gives their negatives, ``out``."""
    pool = message((1, "picture"), (2, "pooled"), (4, "GlobalAveragePool"))
    negative = message((1, "pooled"), (2, "out"), (4, "Neg"))
    graph = message(
        (1, pool), (1, negative), (2, "tiny"), (11, _tensor("picture", shape)), (12, _tensor("out", ("N", 3, 1, 1)))
    )
    path.write_bytes(message((1, 8), (7, graph), (8, message((1, ""), (2, 13)))))
    return path
