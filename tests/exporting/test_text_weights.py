"""Weights as text: a net written by hand, read back, and what a broken folder is told."""

from __future__ import annotations

import re

import pytest
import torch

from fer_lab.exporting import text
from fer_lab.exporting.chain import Chain
from fer_lab.exporting.facts import ExportError, Facts, FileError
from fer_lab.exporting.files import predictor_of_text, refuse_other_bits
from fer_lab.models.preprocess import Preprocess


def small_chain() -> tuple[Chain, Facts]:
    facts = Facts(run="r", net="n", classes=("a", "b", "c"), size=8, channels=1)
    return Chain(("conv", "relu", "pool", "flatten", "dense"), [(3, 3, 1, 2), (2 * 4 * 4, 3)]), facts


def test_numbers_come_back_bit_for_bit_even_the_odd_ones(tmp_path):
    chain, facts = small_chain()
    bits = torch.randint(-(2**31), 2**31, (99,), dtype=torch.int64).to(torch.int32)
    odd = bits.view(torch.float32)[bits.view(torch.float32).isfinite()]
    odd = torch.cat([torch.tensor([-0.0, 1e-45, 3.4028235e38, 1 / 3, 16777217.0]), odd])[:50]
    chain.weighted[1].weight.data.flatten()[: len(odd)] = odd
    text.write(chain, Preprocess(1, [0.5], [0.25]), facts, tmp_path)
    predictor, _ = predictor_of_text(tmp_path)
    refuse_other_bits(predictor.net, chain)
    predictor.net.weighted[0].bias.data[0] = -predictor.net.weighted[0].bias.data[0]
    with pytest.raises(ExportError, match=r"line\.0\.bias read back from the text is not what was written"):
        refuse_other_bits(predictor.net, chain)


def test_text_weights_that_were_tampered_with_are_named(tmp_path):
    chain, facts = small_chain()
    text.write(chain, Preprocess(1, [0.5], [0.25]), facts, tmp_path)
    predictor, _ = predictor_of_text(tmp_path)
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    expected = torch.softmax(chain((pixels / 255 - 0.5) / 0.25), 1)
    torch.testing.assert_close(predictor(pixels), expected)

    file, dimensions = tmp_path / "model_weights/dense1.txt", tmp_path / "dimensions.txt"
    for path, content, fault in (
        (file, file.read_text().replace("\n", "\nx", 1), "dense1.txt: string or file could not be read"),
        (file, "1\n" * 98, "dense1.txt has 98 numbers; dimensions.txt asks for 99"),
        (dimensions, "3 3 1 2\n32", "has 5 words; expected 6 whole numbers"),
        (dimensions, "3 3 1 2\n11 9", "these layers do not fit each other on faces of 8x8"),
    ):
        before = path.read_text()
        path.write_text(content)
        if "11 9" in content:
            file.write_text("1\n" * 108)
        with pytest.raises(FileError, match=re.escape(fault)):
            predictor_of_text(tmp_path)
        path.write_text(before)
    file.unlink()
    with pytest.raises(FileError, match=r"dense1\.txt is missing"):
        predictor_of_text(tmp_path)
