"""Copying samples and rows out of blocks, each byte checked: the inner loop of every read."""

from __future__ import annotations

import struct
from collections.abc import Callable

import lmdb
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from datamodules.store.layout import Blocks, Pieces, key_of

Ints = NDArray[np.int64]

_checksum_at: Callable[[memoryview, int], tuple[int]] = struct.Struct("<Q").unpack_from

LARGE_ROW = 16 * 1024


class BlockReader:
    """Reads one field within a transaction into a buffer.

    Its methods return what is damaged, or None if all is well.

    Args:
        transaction: Over the field's database, giving memoryviews.
        blocks: Layout of the field.
        total: Samples in the store.
        out: Bytes to fill.
    """

    def __init__(self, transaction: lmdb.Transaction[memoryview], blocks: Blocks, total: int, out: memoryview) -> None:
        self._get = transaction.get
        self._blocks = blocks
        self._total = total
        self._out = out

    def read_samples(self, positions: Ints) -> str | None:
        """Read whole samples at these positions."""
        first, count = int(positions[0]), len(positions)
        contiguous = self._blocks.samples > 1 and int(positions[-1]) - first == count - 1
        if contiguous and (count < 3 or bool((positions[1:] - positions[:-1] == 1).all())):
            return self._read_range(first, first + count)
        return self._read_samples(positions, 0)

    def read_rows(self, rows: Ints) -> str | None:
        """Read single rows; row r of position p has number p * rows + r."""
        return self._read_pieces(self._blocks.by_row, rows, 0)

    def _read_range(self, start: int, stop: int) -> str | None:
        """Read samples ``start`` to ``stop - 1``: blocks that are wanted by half or more are checked as a whole."""
        samples = self._blocks.samples
        place = start
        while place < stop:
            block = place // samples
            end = min((block + 1) * samples, stop)
            half = 2 * (end - place) >= self._blocks.held(block, self._total)
            into = (place - start) * self._blocks.field.nbytes
            damaged = (
                self._read_block(block, place, end, into) if half else self._read_samples(np.arange(place, end), into)
            )
            if damaged is not None:
                return damaged
            place = end
        return None

    def _read_block(self, block: int, start: int, stop: int, into: int) -> str | None:
        """Read samples of one block, checking all of it."""
        size, header, first = self._blocks.field.nbytes, self._blocks.header, block * self._blocks.samples
        held = self._blocks.held(block, self._total)
        value = self._get(key_of(block))
        if value is None or len(value) != header + held * size:
            return f"positions {first} to {first + held - 1}"
        if xxh3_64_intdigest(value[header:], self._blocks.seed + block) != _checksum_at(value, 0)[0]:
            return f"positions {first} to {first + held - 1}"
        begin, end = header + (start - first) * size, header + (stop - first) * size
        self._out[into : into + end - begin] = value[begin:end]
        return None

    def _read_samples(self, positions: Ints, into: int) -> str | None:
        """Read samples one by one. Large rows go through the cache one by one: faster than through memory twice."""
        by_row = self._blocks.by_row
        if by_row.nbytes < LARGE_ROW:
            return self._read_pieces(self._blocks.by_sample, positions, into)
        rows = self._blocks.field.shape[0]
        return self._read_pieces(by_row, (positions[:, None] * rows + np.arange(rows)).reshape(-1), into)

    def _read_pieces(self, pieces: Pieces, numbers: Ints, into: int) -> str | None:
        """Read samples or rows by their numbers, each checked alone."""
        get, out, size, header = self._get, self._out, pieces.nbytes, self._blocks.header
        blocks, offsets = np.divmod(numbers, pieces.count)
        columns = zip(
            blocks.tolist(),
            (header + offsets * size).tolist(),
            (pieces.table + offsets * 8).tolist(),
            (numbers + pieces.seed).tolist(),
            strict=True,
        )
        for block, start, table, seed in columns:
            value = get(key_of(block))
            # A short value gives a short piece, whose checksum is wrong.
            if value is None or len(value) < header:
                return f"position {self._position(pieces, seed)}"
            piece = value[start : start + size]
            if xxh3_64_intdigest(piece, seed) != _checksum_at(value, table)[0] or len(piece) != size:
                return f"position {self._position(pieces, seed)}"
            out[into : into + size] = piece
            into += size
        return None

    def _position(self, pieces: Pieces, seed: int) -> int:
        return (seed - pieces.seed) * self._blocks.samples // pieces.count
