"""Decode many images, in this process or in several, ahead of their use."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from lightning_attr.commands.prepare.images import Decoded, Reading, Undecoded, decode, end_with_parent
from lightning_attr.errors import UserError
from lightning_attr.sources.places import Place


class Decoder:
    """Decodes batches of images, a few batches ahead of their use.

    A context manager. Workers are spawned, not forked: a fork would inherit torch's threads in an unknown state.

    Args:
        size: Side of the decoded images in pixels.
        reading: How they are read.
        workers: Processes; 0 decodes in this one.
    """

    AHEAD = 3  # batches decoded or being decoded: enough to hide the parent's encoding, bounded in memory

    def __init__(self, size: int, reading: Reading, workers: int) -> None:
        self.size, self.reading = size, reading
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, batches: Iterable[Sequence[Place]]) -> Iterator[list[Decoded | Undecoded]]:
        """Decode batch by batch, in order.

        Raises:
            UserError: A worker process was killed, mostly for want of memory.
        """
        if self._pool is None:
            yield from ([decode(place, self.size, self.reading) for place in batch] for batch in batches)
            return
        waiting: deque[list[Future[Decoded | Undecoded]]] = deque()
        try:
            for batch in batches:
                waiting.append([self._pool.submit(decode, place, self.size, self.reading) for place in batch])
                if len(waiting) == self.AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        except BrokenProcessPool as error:
            raise UserError("a decoding process was killed (out of memory?): try fewer --workers") from error
