"""What generators write into images, and what others may write in its place."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_attr.commands.prepare.generated import Origin, is_weighted, read_origin
from lightning_attr.errors import UserError

PARAMETERS = (
    'a cat on a mat, <lora:mine:0.8> oil\nNegative prompt: dog,\nblurry\nSteps: 20, Sampler: "Euler a, Seed: 1", '
    "CFG scale: 7.5, Seed: 123, Size: 512x512, Model: mine"
)
WHOLE = Origin("a cat on a mat, oil", 123, 20, 7.5)


def png(**texts: str) -> Image.Image:
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return Image.open(buffer)


def with_exif(form: str, tag: int, value: Any, ifd: int | None = 0x8769) -> Image.Image:
    buffer, exif = io.BytesIO(), Image.Exif()
    (exif.get_ifd(ifd) if ifd else exif)[tag] = value
    Image.new("RGB", (8, 8)).save(buffer, form, exif=exif)
    return Image.open(buffer)


def graph(**changes: Any) -> dict[str, Any]:
    """ComfyUI's default graph, with other nodes or inputs such as ``node3__seed=5``."""
    nodes: dict[str, Any] = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 2**63, "steps": 25, "cfg": 8.0, "sampler_name": "euler", "denoise": 1, "model": ["4", 0],
                "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
            },
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red\nfox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
    }  # fmt: skip
    for name, value in changes.items():
        node, _, key = name.removeprefix("node").partition("__")
        if key:
            nodes[node]["inputs"][key] = value
        else:
            nodes[node] = value
    return nodes


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_automatic1111_in_a_png() -> None:
    assert read_origin(png(parameters=PARAMETERS)) == WHOLE


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_automatic1111_in_the_exif_comment(form: str, order: str) -> None:
    assert read_origin(with_exif(form, 0x9286, b"UNICODE\0" + PARAMETERS.encode(order))) == WHOLE


def test_a_flux_image_of_forge_has_its_distilled_guidance() -> None:
    text = "a cat\nSteps: 4, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 0"
    assert read_origin(png(parameters=text)) == Origin("a cat", 0, 4, 3.5)


def test_flat_json() -> None:
    invoke = {"positive_prompt": "a cat", "negative_prompt": "", "seed": 7, "steps": 30, "cfg_scale": 6, "model": {}}
    assert read_origin(png(invokeai_metadata=json.dumps(invoke))) == Origin("a cat", 7, 30, 6.0)
    fooocus = {"prompt": "a cat", "seed": "7", "steps": 30, "guidance_scale": 4.0}
    assert read_origin(png(parameters=json.dumps(fooocus))) == Origin("a cat", 7, 30, 4.0)


def test_a_plain_prompt_and_none() -> None:
    assert read_origin(png(prompt="a  cat")) == Origin("a cat")
    assert read_origin(png(parameters="written by hand", Comment="x")) == Origin()
    assert read_origin(Image.new("RGB", (8, 8))) == Origin()


def test_a_comfyui_graph() -> None:
    assert read_origin(png(prompt=json.dumps(graph()), workflow="{}")) == Origin("a red fox", 2**63, 25, 8.0)
    webp = with_exif("WEBP", 0x0110, f"prompt:{json.dumps(graph())}", ifd=None)
    assert read_origin(webp) == Origin("a red fox", 2**63, 25, 8.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Through other nodes on the way, and values that stand in nodes of their own.
        ({"node3__positive": ["9", 0], "node9": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0])},
         Origin("a red fox", 2**63, 25, 8.0)),
        ({"node6__text": ["9", 0], "node9": node("String", value="a fox")}, Origin("a fox", 2**63, 25, 8.0)),
        ({"node3__seed": ["9", 0], "node9": node("Seed", seed=4)}, Origin("a red fox", 4, 25, 8.0)),
        # A number that is computed is not known.
        ({"node3__seed": ["9", 0], "node9": node("Add", a=4, b=1)}, Origin("a red fox", None, 25, 8.0)),
        # A second pass over the same prompt: what they have in common.
        ({"node9": node("KSampler", seed=1, steps=25, cfg=8.0, positive=["6", 0])}, Origin("a red fox", None, 25, 8.0)),
        # SDXL's encoder has the text twice.
        ({"node6": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a fox")}, Origin("a fox", 2**63, 25, 8.0)),
        # FLUX: its guidance is in the condition.
        ({"node3": node("KSampler", seed=1, steps=8, cfg=1.0, positive=["9", 0]),
          "node9": node("FluxGuidance", guidance=3.5, conditioning=["6", 0])}, Origin("a red fox", 1, 8, 3.5)),
        ({"node3": node("SamplerCustomAdvanced", noise=["8", 0], guider=["9", 0], sigmas=["10", 0]),
          "node8": node("RandomNoise", noise_seed=11), "node10": node("BasicScheduler", steps=9),
          "node9": node("CFGGuider", positive=["6", 0], negative=["7", 0], cfg=5)}, Origin("a red fox", 11, 9, 5.0)),
    ],
)  # fmt: skip
def test_ways_through_a_graph(changes: dict[str, Any], expected: Origin) -> None:
    assert read_origin(png(prompt=json.dumps(graph(**changes)))) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"node3__positive": ["9", 0], "node9": node("ConditioningCombine", conditioning_1=["6", 0],
                                                       conditioning_2=["7", 0])}, "made of 2 others"),
        ({"node3__positive": ["9", 0], "node9": node("A", conditioning=["8", 0]),
          "node8": node("A", conditioning=["9", 0])}, "circle"),
        ({"node3__positive": ["9", 0], "node9": node("A", conditioning=["9", 0])}, "circle"),
        ({"node6__text": ["6", 0]}, "other nodes compute"),
        ({"node6__text": 5}, "other nodes compute"),
        ({"node3__positive": "here"}, "no known node encodes"),
        ({"node3__positive": ["99", 0]}, "no known node encodes"),
        ({"node3__positive": [{}, 0]}, "no known node encodes"),
        ({"node3": node("Sampler of mine")}, "without any of KSampler"),
        ({"node3": {"class_type": ["KSampler"], "inputs": 5}}, "without any of KSampler"),
        ({"node3": {"class_type": "KSampler", "inputs": 5}}, "no known node encodes"),
        ({"node9": node("KSampler", positive=["7", 0])}, "found 2 prompts, 'a red fox' and 'ugly'"),
        ({"node6": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a dog")}, "2 texts of one condition"),
        ({"node3__seed": "many"}, "seed: found 'many'"),
        ({"node3__seed": -1}, "seed: found -1"),
        ({"node3__seed": 2**64}, f"seed: found {2**64}"),
        ({"node3__steps": True}, "steps: found True"),
        ({"node3__cfg": {}}, "guidance: found {}"),
        ({"node3__cfg": float("nan")}, "guidance: found nan"),
        ({"node3__cfg": 1e300}, "guidance: found 1e+300"),
        ({"node6__text": "a\x1b[2Jfox"}, "control character (U+001B)"),
        ({"node6__text": "a \ud800 fox"}, "lone surrogate"),
        ({"node6__text": "fox " * 50_000}, "expected at most 100,000"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_say_the_prompt_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        read_origin(png(prompt=json.dumps(graph(**changes))))
    assert says in str(refused.value)
    assert str(refused.value).startswith("prompt: ")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"prompt": '{"a":' + "[" * 50_000}, "recursion depth"),
        ({"prompt": '{"3":'}, "not JSON"),
        ({"prompt": f'{{"3": {"9" * 5000}}}'}, "not JSON"),
        ({"parameters": "a\nSteps: 20, Seed: 1e3"}, "found '1e3'"),
        ({"parameters": f"a\nSteps: 20, Seed: {'9' * 5000}"}, "expected a whole number"),
        ({"parameters": "a\nSteps: 20, CFG scale: high"}, "CFG scale: found 'high'"),
        ({"parameters": "a\x00b\nSteps: 20"}, "control character"),
        ({"parameters": '{"prompt": ["a"]}'}, "expected text"),
        ({"prompt": "a" * 4_000_001}, "found 4,000,001 characters"),
    ],
)
def test_what_is_of_no_generator_is_refused(texts: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        read_origin(png(**texts))
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_two_generators_must_agree_and_one_that_speaks_is_enough() -> None:
    both = png(parameters="a red fox\nSteps: 25, Seed: 3", prompt=json.dumps(graph()))
    assert read_origin(both) == Origin("a red fox", None, 25, 8.0)
    with pytest.raises(UserError, match="found 2 prompts, 'a dog' and 'a red fox'"):
        read_origin(png(parameters="a dog\nSteps: 25", prompt=json.dumps(graph())))
    assert read_origin(png(parameters="a dog\nSteps: 25", prompt="{")) == Origin("a dog", steps=25)


def test_a_chunk_that_unpacks_to_gigabytes_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    plain = buffer.getvalue()
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50_000_000), 9))
    with pytest.raises(ValueError, match="too large"):
        read_origin(Image.open(io.BytesIO(plain[:33] + bomb + plain[33:])))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1_000_000,
        "(a:" * 500_000,
        "<lora:" * 500_000 + "\nSteps: 2",
        'a\nSteps: 2, A: "' + '\\"' * 500_000,
        "a\nSteps: 2" + ", A: b" * 300_000,
        "\nSteps: 2" * 100_000,
    ],
)
def test_long_texts_take_no_longer_than_their_length(text: str) -> None:
    began = time.perf_counter()
    with contextlib.suppress(UserError):
        read_origin(png(parameters=text))
    is_weighted(text)
    assert time.perf_counter() - began < 3


def test_weights_of_words_are_noticed() -> None:
    assert is_weighted("a (red:1.3) fox")
    assert not is_weighted("a (red) fox: 1.3 (of 2)")
