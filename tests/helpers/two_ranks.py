"""Runs the command line on two ranks, one of which a signal may end at a chosen moment.

As a script it is ``lightning-attr`` itself, for the tests of Lightning's launcher, which starts it once more.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stopped import CONTEXT, Ended, Moment, _child, _signal_at

MOMENT = "TWO_RANKS_MOMENT"
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def run_both(args: Sequence[object], log: Path, moments: Mapping[int, Moment] | None = None) -> list[Ended]:
    """Start both ranks as a cluster does, from a server that has imported everything, and wait for their end.

    Like a cluster, it ends a rank that is left behind.
    """
    port = free_port()
    logs = [log.with_suffix(f".{rank}") for rank in (0, 1)]
    words = [*map(str, args), *TWO]
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, port, words, str(logs[rank]), (moments or {}).get(rank)))
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    try:
        _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [Ended(process.exitcode, path.read_text()) for process, path in zip(ranks, logs, strict=True)]


def _wait(ranks: Sequence[Any]) -> None:
    end = time.monotonic() + 240
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode not in (None, 0, 143) for process in ranks):
            time.sleep(1)
            return
        if time.monotonic() > end:
            raise TimeoutError("a rank hangs")
        time.sleep(0.05)


def _rank(rank: int, port: int, args: list[str], log: str, moment: Moment | None) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # read from the environment when it was imported, which was before
    _child(args, log, moment)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def command(args: Sequence[object], moments: Mapping[int, Moment] | None = None) -> Ended:
    """Run the real command, whose rank 0 starts rank 1, and check that it leaves no process behind."""
    words = [sys.executable, __file__, *map(str, args), *TWO]
    encoded = json.dumps({rank: asdict(moment) for rank, moment in (moments or {}).items()})
    with subprocess.Popen(
        words, env={**os.environ, MOMENT: encoded}, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, stderr = process.communicate(timeout=400)
            _wait_for_an_empty_group(process.pid)
        except BaseException:
            _end_group(process.pid)
            raise
    return Ended(process.returncode, stderr)


def _wait_for_an_empty_group(group: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise TimeoutError("the command left a process behind")


def _end_group(group: int) -> None:
    try:
        os.killpg(group, 9)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    del sys.path[0]  # this script's folder has folders named like our packages
    from lightning_attr.cli import main

    chosen = json.loads(os.environ.get(MOMENT, "{}")).get(os.environ.get("LOCAL_RANK", "0"))
    if chosen is not None:
        _signal_at(Moment(**chosen))
    main()
