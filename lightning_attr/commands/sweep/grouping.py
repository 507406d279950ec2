"""The jobs of a sweep: entries by themselves, and groups of them that are trained together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from xxhash import xxh3_64_hexdigest

from lightning_attr.artifacts import write_atomically
from lightning_attr.commands.sweep.folder import SweepFolder, read_status
from lightning_attr.commands.sweep.plan import Entry, merged, training_config
from lightning_attr.commands.sweep.worker import LOG, Job
from lightning_attr.runs.folder import RunFolder, read_manifest


def unfinished_jobs(folder: SweepFolder, size: int) -> list[Job]:
    """Return jobs for all entries that are not done.

    Groups that were begun go on as they are. An entry that was begun alone, or that failed, runs alone.

    Args:
        folder: The sweep.
        size: How many entries to train together.
    """
    begun = list(_begun_groups(folder))
    taken = {member for job in begun for member in job.folders}
    left = [e for e in folder.entries if folder.status(e).state != "done" and folder.entry(e) not in taken]
    fresh = [e for e in left if size > 1 and _is_fresh(folder.entry(e))]
    groups = [fresh[start : start + size] for start in range(0, len(fresh), size)]
    groups = [group for group in groups if len(group) > 1]
    grouped = {entry.name for group in groups for entry in group}
    alone = [job_alone(folder, entry) for entry in left if entry.name not in grouped]
    return [*begun, *(_group(folder, group) for group in groups), *alone]


def members_alone(folder: SweepFolder, jobs: Sequence[Job]) -> list[Job]:
    """Return a job for each entry of groups that failed: one that fails must not take others with it."""
    members = {member for job in jobs if len(job.folders) > 1 for member in job.folders}
    return [
        job_alone(folder, entry)
        for entry in folder.entries
        if folder.entry(entry) in members and folder.status(entry).state == "failed"
    ]


def job_alone(folder: SweepFolder, entry: Entry) -> Job:
    """Return the job of a single entry."""
    path = folder.entry(entry)
    return Job(tuple(folder.command(entry)), (path,), path / LOG)


def _is_fresh(entry: Path) -> bool:
    return read_status(entry).state == "waiting" and not RunFolder(entry).last_checkpoint.exists()


def _begun_groups(folder: SweepFolder) -> Iterator[Job]:
    named = {entry.name: entry for entry in folder.entries}
    for path in sorted((folder.path / "groups").glob("*/checkpoints/last.ckpt")):
        members = _members(path.parents[1], named)
        if not members:
            continue
        job = _group(folder, members)
        states = {read_status(member).state for member in job.folders}
        # Once a member has its weights, the training is over, and a failure was that of measuring or writing.
        trained = any(RunFolder(member).last_checkpoint.exists() for member in job.folders)
        to_go_on = "failed" not in states or (trained and "done" not in states)
        if states != {"done"} and to_go_on and not _is_finished(path.parents[1]):
            yield job


def _is_finished(run: Path) -> bool:
    return bool(read_manifest(run / "manifest.json")["status"] == "finished")


def _members(group: Path, named: Mapping[str, Entry]) -> list[Entry]:
    """Return the entries of a group that was begun; none where the sweep has not all of them any more."""
    settings = read_manifest(group / "manifest.json")["settings"]
    count = sum(key.startswith("model.init_args.folders.") for key in settings)
    folders = [str(settings[f"model.init_args.folders.{place}"]) for place in range(count)]
    names = [folder.partition("/entries/")[2] for folder in folders]  # wherever the sweep lies by now
    return [named[name] for name in names] if named.keys() >= {*names} else []


def _group(folder: SweepFolder, entries: Sequence[Entry]) -> Job:
    """Write the config of a group, and return its job."""
    path = folder.path / "groups" / xxh3_64_hexdigest("\n".join(entry.name for entry in entries).encode())
    text = yaml.safe_dump(_group_config(folder, entries, path), sort_keys=False)
    write_atomically(path / "group.yaml", text.encode())
    return Job(("fit", "-c", str(path / "group.yaml")), tuple(map(folder.entry, entries)), path / LOG)


def _group_config(folder: SweepFolder, entries: Sequence[Entry], path: Path) -> dict[str, Any]:
    """Return the config of a group's training, with each member's task and data as its own run has them."""
    training = training_config(folder.sweep.train)
    members = [merged(training, entry.settings) for entry in entries]
    models = {"members": [m["model"] for m in members], "folders": [str(folder.entry(e)) for e in entries]}
    return {
        **members[0],
        "trainer": {**members[0]["trainer"], "default_root_dir": str(path)},
        "model": {"class_path": "lightning_attr.tasks.GroupedRetraining", "init_args": models},
        "data": {
            "class_path": "datamodules.GroupedLatents",
            "init_args": {"members": [m["data"] for m in members]},
        },
    }
