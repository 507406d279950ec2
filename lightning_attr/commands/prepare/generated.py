"""Read what generators write into their images: prompt, seed, steps and guidance.

AUTOMATIC1111's and Forge's ``parameters`` (of a JPEG or WebP the EXIF comment), ComfyUI's graph or a plain text under
``prompt``, and flat JSON as of InvokeAI and Fooocus. It is the text of others: read, never run, and of bounded length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from datamodules.store.records import check_text
from lightning_attr.errors import UserError, one_line, quoted, shortened

#: More characters than any generator writes of one image, and than any text encoder reads.
MOST_TEXT, MOST_PROMPT = 4_000_000, 100_000
#: More than steps and guidance are anywhere; seeds are of 64 bits.
MOST_STEPS, MOST_GUIDANCE, MOST_SEED = 10_000, 1000, 2**64 - 1

_EXIF, _USER_COMMENT, _MODEL = 0x8769, 0x9286, 0x0110
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
#: What is in a prompt for AUTOMATIC1111 itself, and never reaches a text encoder.
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{0,300}>")
#: Weights of words: ``(word:1.2)``.
_WEIGHTED = re.compile(r"\([^():]{1,300}:\s{0,9}[0-9.]{1,9}\s{0,9}\)")


@dataclass(frozen=True)
class Origin:
    """How an image was made; None is unknown.

    Args:
        prompt: The text that it was made from.
        seed: Of its first noise, 0 to 2^64 - 1.
        steps: Of sampling.
        guidance: Scale of the guidance; 1 means none.

    Raises:
        UserError: A value is of another type, or beyond what any sampler takes.
    """

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None:
            object.__setattr__(self, "prompt", _plain_text(self.prompt))
        for name, kind, low, high in (
            ("seed", int, 0, MOST_SEED),
            ("steps", int, 1, MOST_STEPS),
            ("guidance", float, 0, MOST_GUIDANCE),
        ):
            if (value := getattr(self, name)) is None:
                continue
            if isinstance(value, float) and value.is_integer() and kind is int:
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, (int, kind)) or not low <= value <= high:
                raise UserError(f"{name}: found {quoted(value)}, expected a number from {low} to {high}")
            object.__setattr__(self, name, kind(value))

    def known(self) -> dict[str, Any]:
        """Return what is known besides the prompt, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prompt"}
        return {name: value for name, value in values.items() if value is not None}


def read_origin(image: Image.Image) -> Origin:
    """Return what the generator wrote into an opened image; nothing is known where it wrote nothing.

    Raises:
        UserError: It is not what a generator writes, or it does not say which of several prompts made the image.
    """
    found, refusals = [], []
    for name, text in _texts(image):
        try:
            if (origin := _read(name, text)) is not None:
                found.append(origin)
        except UserError as error:
            refusals.append(f"{name}: {error}")
    if refusals and not found:
        raise UserError(refusals[0])
    return _common(found)


def _read(name: str, text: str) -> Origin | None:
    """Read one text; None where it is of no generator that is known."""
    if text.lstrip().startswith("{"):
        return _of_graph(_json(text)) if name == "prompt" else _of_json(_json(text))
    return Origin(text) if name == "prompt" else _of_parameters(text)


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Yield names and texts that a generator may have written."""
    exif = image.getexif()  # which reads a PNG to its end, where there may be text as well
    for name in ("parameters", "prompt", "invokeai_metadata"):
        if isinstance(text := image.info.get(name), str):
            yield name, _short(name, text)
    comment = exif.get_ifd(_EXIF).get(_USER_COMMENT)
    if isinstance(comment, bytes) and (text := _comment(comment)):
        yield "parameters", _short("EXIF comment", text)
    if isinstance(text := exif.get(_MODEL), str) and text.startswith("prompt:"):
        yield "prompt", _short("EXIF model", text.removeprefix("prompt:"))


def _short(name: str, text: str) -> str:
    if len(text) > MOST_TEXT:
        raise UserError(f"{name}: found {len(text):,} characters, expected at most {MOST_TEXT:,}")
    return text


def _comment(value: bytes) -> str:
    """Decode an EXIF comment, which begins with the name of its characters; some writers have the bytes swapped."""
    charset, text = value[:8], value[8:]
    if charset != b"UNICODE\0":
        return text.decode(errors="replace") if charset in (b"ASCII\0\0\0", bytes(8)) else ""
    zeros_first = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if zeros_first else "utf-16-le", errors="replace")


def _json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # of what is nested too deep
        raise UserError(f"not JSON ({shortened(one_line(error), 200)})") from error
    if not isinstance(value, dict):
        raise UserError(f"found a JSON {type(value).__name__}, expected an object")
    return value


def _of_json(value: Mapping[str, Any]) -> Origin | None:
    """Read an object of settings."""
    names = {
        "prompt": ("positive_prompt", "prompt"), "seed": ("seed",), "steps": ("steps",),
        "guidance": ("cfg_scale", "guidance_scale", "guidance"),
    }  # fmt: skip
    known = {
        name: next((value[key] for key in keys if value.get(key) is not None), None) for name, keys in names.items()
    }
    if known["seed"] is not None and isinstance(known["seed"], str) and known["seed"].isdecimal():
        known["seed"] = _whole(known["seed"])  # as Fooocus writes it
    return None if known["prompt"] is None else Origin(**known)


def _of_parameters(text: str) -> Origin | None:
    """Read AUTOMATIC1111's text: the prompt, what to avoid, and a last line of settings."""
    lines = text.strip().split("\n")
    last = next((index for index in reversed(range(len(lines))) if lines[index].startswith("Steps: ")), None)
    if last is None:
        return None
    prompt = lines[:last]
    avoid = next((index for index, line in enumerate(prompt) if line.startswith("Negative prompt:")), len(prompt))
    # Of what stands in quotes, such as the prompt of a second pass, nothing is a setting of this one.
    settings = '""'.join(re.split(r'(?<!\\)"', lines[last])[::2])
    values = dict(pair.split(": ", 1) for pair in settings.split(", ") if ": " in pair)
    guidance = values.get("Distilled CFG Scale", values.get("CFG scale"))  # of FLUX the other one is 1
    return Origin(
        _NETWORK.sub("", "\n".join(prompt[:avoid])),
        seed=_whole(values.get("Seed")),
        steps=_whole(values.get("Steps")),
        guidance=_number("CFG scale", guidance),
    )


def _whole(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise UserError(f"found {quoted(text)}, expected a whole number")
    return int(text)


def _number(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise UserError(f"{name}: found {quoted(text)}, expected a number") from None


def _plain_text(text: object) -> str:
    """Return a prompt on one line.

    Raises:
        UserError: It is no text, or has characters that command a terminal.
    """
    check_text("prompt", text)
    assert isinstance(text, str)
    line = " ".join(text.split())
    if len(line) > MOST_PROMPT:
        raise UserError(f"prompt: found {len(line):,} characters, expected at most {MOST_PROMPT:,}")
    if (found := _CONTROLS.search(line)) is not None:
        raise UserError(f"prompt: found a control character (U+{ord(found[0]):04X}), expected text")
    return line


def is_weighted(prompt: str) -> bool:
    """Return whether a prompt has weights of words, which its generator took apart and a text encoder does not."""
    return _WEIGHTED.search(prompt) is not None


def _common(found: Sequence[Origin]) -> Origin:
    """Return what all say that say it.

    Raises:
        UserError: They are of different prompts.
    """
    prompts = {origin.prompt for origin in found if origin.prompt is not None}
    if len(prompts) > 1:
        one, other = sorted(prompts)[:2]
        raise UserError(f"found {len(prompts)} prompts, {quoted(one)} and {quoted(other)}, expected one")
    known: dict[str, Any] = {}
    for name in ("seed", "steps", "guidance"):
        values = {value for origin in found if (value := getattr(origin, name)) is not None}
        known[name] = values.pop() if len(values) == 1 else None
    return Origin(next(iter(prompts), None), **known)


# ComfyUI: a graph of nodes by number. An input is a value, or [node, output] of the node that gives it.

#: Nodes that sample, and where each has its condition.
_SAMPLERS = {"KSampler": "positive", "KSamplerAdvanced": "positive", "SamplerCustom": "positive",
             "SamplerCustomAdvanced": "guider"}  # fmt: skip
#: Inputs through which a condition comes, and the texts of the nodes that encode it.
_THROUGH = ("positive", "conditioning")
_TEXTS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl")
_VALUES = {str: ("text", "string", "value", "prompt"), int: ("seed", "noise_seed", "value", "int"),
           float: ("value", "float", "cfg")}  # fmt: skip


def _of_graph(graph: Mapping[str, Any]) -> Origin | None:
    """Read ComfyUI's graph: from each sampler to the text that it is given.

    Raises:
        UserError: A condition is made of several texts, goes round in a circle, or is of no text.
    """
    samplers = [node for node in graph.values() if isinstance(node, dict) and str(node.get("class_type")) in _SAMPLERS]
    if not samplers:
        raise UserError(f"found a graph without any of {', '.join(_SAMPLERS)}, expected one")
    return _common([_of_sampler(graph, _inputs(node), _SAMPLERS[node["class_type"]]) for node in samplers])


def _of_sampler(graph: Mapping[str, Any], inputs: Mapping[str, Any], condition: str) -> Origin:
    """Return what one sampler was given; numbers that are computed by other nodes are not known."""
    path = list(_upstream(graph, inputs, condition))
    given = [inputs, *(part for name in ("noise", "sigmas") for part in _behind(graph, inputs.get(name)))]
    return Origin(
        _text_of(graph, path[-1]),
        seed=_value(graph, given, ("seed", "noise_seed"), int),
        steps=_value(graph, given, ("steps",), int),
        # FLUX's guidance is an input of its condition; the sampler's is then that of the pair of both.
        guidance=_value(graph, path[1:], ("guidance",), float) or _value(graph, [*given, *path], ("cfg",), float),
    )


def _upstream(graph: Mapping[str, Any], inputs: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the inputs of each node on the way to the one that encodes a text."""
    yield inputs
    passed = {id(inputs)}
    while True:
        (inputs,) = _behind(graph, inputs.get(name)) or ({},)
        if id(inputs) in passed:
            raise UserError("found a graph that goes round in a circle, expected one that ends at a text")
        passed.add(id(inputs))
        yield inputs
        if any(key in inputs for key in _TEXTS):
            return
        names = [key for key, value in inputs.items() if key.startswith(_THROUGH) and _behind(graph, value)]
        if len(names) != 1:
            found = f"a condition made of {len(names)} others" if names else "a condition that no known node encodes"
            raise UserError(f"found {found}, expected that of one text")
        name = names[0]


def _text_of(graph: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Return the one text of a node that encodes it; SDXL's, SD3's and FLUX's nodes have one for each encoder."""
    values = [_value(graph, [inputs], (key,), str) for key in _TEXTS if key in inputs]
    texts = {" ".join(value.split()) for value in values if isinstance(value, str)}
    if not all(isinstance(value, str) for value in values):
        raise UserError("found a text that other nodes compute, expected one that is written in the graph")
    if len(texts) > 1:
        raise UserError(f"found {len(texts)} texts of one condition, expected the same for each encoder")
    return texts.pop()


def _value(graph: Mapping[str, Any], given: Sequence[Mapping[str, Any]], keys: Sequence[str], kind: type) -> Any:
    """Return the first input of these names: as it is, or as the node behind it has it alone."""
    value = next((inputs[key] for inputs in given for key in keys if key in inputs), None)
    if isinstance(value, list):
        behind = _behind(graph, value)
        found = [inputs[key] for inputs in behind for key in _VALUES[kind] if key in inputs]
        value = found[0] if len(found) == 1 and not isinstance(found[0], list) else None
    return value


def _behind(graph: Mapping[str, Any], link: Any) -> list[Mapping[str, Any]]:
    """Return the inputs of the node that a link leads to, in a list; an empty one where it is no link."""
    if not (isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int)):
        return []
    node = graph.get(str(link[0]))
    return [_inputs(node)] if isinstance(node, dict) else []


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}
