"""Weights as text, as the reference system R0 keeps them, and a net out of them again.

    model_weights/conv1_1.txt …   one number a line: weights in (out, in, kh, kw) order, dense ones (out, in), then biases
    dimensions.txt                a line for each of these layers: kh kw in out, or for dense ones in out
    net.json                      what numbers cannot say: the line of layers, labels, preprocessing (R0 had it in code)

Nine significant digits tell any two float32 numbers apart, so the way there and back changes no bit. A dense layer
behind a flatten takes its inputs in (channel, row, column) order; R0 mixed this up.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer_lab.exporting.chain import KINDS, Chain, Shape
from fer_lab.exporting.facts import Facts, FileError
from fer_lab.models.preprocess import Preprocess

WEIGHTS, DIMENSIONS, NET = "model_weights", "dimensions.txt", "net.json"
AT_ONCE = 100_000
"""Numbers that are made text together."""


def write(chain: Chain, preprocess: Preprocess, facts: Facts, folder: Path) -> list[Path]:
    """The two files and the folder of a net, in `folder`."""
    (folder / WEIGHTS).mkdir()
    for name, layer in zip(names(chain.layers), chain.weighted, strict=True):
        assert layer.bias is not None
        with (folder / WEIGHTS / name).open("w") as file:
            for values in (layer.weight, layer.bias):
                file.writelines(lines(values.detach()))
    shapes = "".join(f"{' '.join(map(str, shape))}\n" for shape in chain.shapes)
    (folder / DIMENSIONS).write_text(shapes)
    normalise = {
        "channels": preprocess.channels,
        "mean": preprocess.mean.flatten().tolist(),
        "std": preprocess.std.flatten().tolist(),
        "per_image": preprocess.per_image,
        "clip": preprocess.clip,
    }
    content = {"layers": chain.layers, "preprocess": normalise, "facts": asdict(facts)}
    (folder / NET).write_text(json.dumps(content, indent=1))
    return [folder / name for name in (WEIGHTS, DIMENSIONS, NET)]


def names(layers: tuple[str, ...]) -> list[str]:
    """conv1_1.txt, conv1_2.txt, conv2_1.txt … (a pooling begins the next stage), dense1.txt …"""
    found, stage, convolution, dense = [], 1, 0, 0
    for kind in layers:
        if kind == "pool":
            stage, convolution = stage + 1, 0
        elif kind == "conv":
            convolution += 1
            found.append(f"conv{stage}_{convolution}.txt")
        elif kind == "dense":
            dense += 1
            found.append(f"dense{dense}.txt")
    return found


def lines(values: Tensor) -> Iterator[str]:
    for part in values.float().flatten().split(AT_ONCE):
        yield ("%.9g\n" * len(part)) % tuple(part.tolist())


def read(folder: Path) -> tuple[Chain, Preprocess, Facts]:
    """Raises FileError that names what is missing, too short, too long or no number."""
    for name in (NET, DIMENSIONS, WEIGHTS):
        if not (folder / name).exists():
            raise FileError(
                f"{folder} has no {name}, so it holds no text weights; python -m fer_lab.export run=ID formats=[text] writes "
                f"{WEIGHTS}/, {DIMENSIONS} and {NET} (its layers, labels and preprocessing)"
            )
    content = read_net(folder / NET)
    layers = tuple(content["layers"])
    chain = Chain(layers, read_dimensions(folder / DIMENSIONS, layers))
    for name, layer in zip(names(layers), chain.weighted, strict=True):
        assert layer.bias is not None
        found = read_numbers(folder / WEIGHTS / name, layer.weight.numel() + layer.bias.numel())
        layer.weight.data.copy_(found[: layer.weight.numel()].view_as(layer.weight))
        layer.bias.data.copy_(found[layer.weight.numel() :])
    facts = Facts.of(content["facts"], str(folder / NET))
    return chain, Preprocess(**content["preprocess"]), facts


def read_net(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        wrong = [kind for kind in content["layers"] if kind not in KINDS]
        Preprocess(**content["preprocess"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{path} does not describe a net: {error!r}; it needs layers, preprocess and facts"
        ) from error
    if wrong:
        raise FileError(f"{path} has layers {', '.join(wrong)}; choices: {', '.join(KINDS)}")
    return content


def read_dimensions(path: Path, layers: tuple[str, ...]) -> list[Shape]:
    """A line break is as good as a space, as for R0's reader."""
    lengths = [4 if kind == "conv" else 2 for kind in layers if kind in ("conv", "dense")]
    words = path.read_text().split()
    if len(words) != sum(lengths) or not all(word.isdecimal() and int(word) for word in words):
        raise FileError(
            f"{path} has {len(words)} words; expected {sum(lengths)} whole numbers above 0 for the layers in {NET}: kh kw in "
            "out for each convolution, in out for each dense layer"
        )
    numbers = iter(map(int, words))
    return [tuple(next(numbers) for _ in range(length)) for length in lengths]


def read_numbers(path: Path, count: int) -> Tensor:
    """`count` float32 numbers; by way of float64, from which rounding gives back what was written."""
    if not path.is_file():
        raise FileError(f"{path} is missing; {DIMENSIONS} and {NET} name its layer")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of what is no number
            found = np.fromstring(path.read_text(), dtype=np.float64, sep="\n")
    except (ValueError, DeprecationWarning) as error:
        raise FileError(f"{path}: {error}; expected one number a line") from error
    if len(found) != count:
        raise FileError(f"{path} has {len(found):,} numbers; {DIMENSIONS} asks for {count:,}")
    return torch.from_numpy(found.astype(np.float32))
