"""Neutral ground, which imports nothing else of ours: files of tensors and their checksums, scores, chunks."""

from lightning_attr.artifacts.tensors import (
    Header,
    load_artifact,
    load_tensors,
    read_config,
    read_header,
    read_json,
    read_safetensors,
    save_tensors,
    tensors_digest,
    whole_file,
    write_atomically,
    write_json,
)

__all__ = [
    "Header",
    "load_artifact",
    "load_tensors",
    "read_config",
    "read_header",
    "read_json",
    "read_safetensors",
    "save_tensors",
    "tensors_digest",
    "whole_file",
    "write_atomically",
    "write_json",
]
