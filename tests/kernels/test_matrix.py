"""Kernels compiled for devices that are not here, in processes that do not interpret; and what is read from listings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kernels import compilation, matrix, tiles
from kernels.compilation import Compiled, Instruction
from kernels.geometry import PRECISIONS, Layer
from kernels.tiles import Tile

ROOT = Path(__file__).resolve().parents[2]


def compile_matrix(*arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kernels.matrix", *arguments],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict[str, Any]]:
    """What became of all classes of layers in all precisions, on all targets, and of Hopper's own kernels."""
    path = tmp_path_factory.mktemp("matrix") / "matrix.json"
    result = compile_matrix("--jobs", "1", "--json", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(path.read_text())["cases"]


def test_every_class_of_layers_compiles_for_every_target(compiled):
    assert {(case["name"], case["precision"], case["target"]) for case in compiled} == set(
        product(matrix.CLASSES, PRECISIONS, matrix.TARGETS)
    )
    for case in compiled:
        assert case["spills"] == 0
        assert case["faults"] == []
        assert 16 <= case["registers"] <= 512


def test_every_kernel_multiplies_matrices_in_its_loop(compiled):
    conv3_2 = {
        (case["target"], case["tile"]["kind"]): case
        for case in compiled
        if (case["name"], case["precision"]) == ("conv3_2", "float16")
    }
    assert {key: case["matrix"] for key, case in conv3_2.items()} == {
        ("sm_80", "implicit"): "mma.sync",
        ("sm_90", "implicit"): "wgmma",
        ("sm_90", "persistent"): "wgmma",
        ("sm_90", "halo"): "wgmma",
        ("gfx942", "implicit"): "mfma",
    }
    assert all(case["loop"][case["matrix"]] >= 4 for case in conv3_2.values())
    assert {case["tile"]["kind"] for case in compiled} == set(tiles.KINDS)


def test_the_model_of_shared_memory_is_the_compilers(compiled):
    """But for barriers, and for outputs that need no place on their way out."""
    for case in compiled:
        tile, capability = Tile(**case["tile"]), matrix.CAPABILITIES[case["target"]]
        modelled = tiles.shared_bytes(tile, "float16", capability)
        if tile.kind in ("implicit", "split") and case["precision"] == "float16":
            loop = tile.stages if case["target"] == "sm_90" else tile.stages - 1
            assert loop * tiles.step_bytes(tile, "float16") <= case["shared"] <= modelled + 64, case


def test_a_tile_that_is_too_large_is_a_fault():
    arguments = ("--only", "conv3_2", "float16", "sm_80", "--tile", "implicit,128,256,64,4,6", "--jobs", "1")
    result = compile_matrix(*arguments)
    assert result.returncode == 1
    faults = result.stderr.splitlines()
    assert all(fault.startswith("conv3_2, float16, sm_80, implicit 128x256x64 w4 s6: ") for fault in faults)
    assert any("bytes of shared memory, of 166912" in fault for fault in faults)
    assert any("instructions spill registers" in fault for fault in faults)


CASE = matrix.Case("conv3_2", Layer(56, 56, 256, 256), "float16", "sm_90", Tile("implicit", 128, 128, 64, 8))
LOOP = {"wgmma": 4, "copy": 8, "other": 90}
GOOD = Compiled(100, 0, 98304, "wgmma", {"wgmma": 4, "copy": 24, "other": 300}, LOOP, 1.0)


@pytest.mark.parametrize(
    ("case", "compiled", "expected"),
    [
        (CASE, GOOD, []),
        (CASE, GOOD._replace(spills=3), ["3 instructions spill registers"]),
        (CASE, GOOD._replace(matrix="mma.sync"), ["mma.sync instead of wgmma"]),
        (CASE._replace(target="sm_80"), GOOD._replace(matrix="mma.sync"), []),
        (CASE, GOOD._replace(matrix=""), ["no matrix instruction", "nothing instead of wgmma"]),
        (CASE, GOOD._replace(loop={}), []),  # unrolled
        (CASE, GOOD._replace(shared=232448), []),
        (CASE, GOOD._replace(shared=232449), ["232449 bytes of shared memory, of 232448"]),
        (
            CASE._replace(target="gfx942"),
            GOOD._replace(matrix="mfma", shared=65537),
            ["65537 bytes of shared memory, of 65536"],
        ),
        (CASE, GOOD._replace(instructions={"wgmma": 4}), ["nothing is copied while it computes"]),
        (CASE._replace(target="gfx942"), GOOD._replace(matrix="mfma", shared=9, instructions={}), []),
        (CASE._replace(tile=Tile("stem", 9, 9, 9)), GOOD._replace(matrix="mma.sync", instructions={}), []),
    ],
)
def test_faults(case, compiled, expected):
    assert matrix.faults(case, compiled) == expected


@pytest.mark.parametrize(
    "text", ["implicit", "implicit,1,2", "round,1,2,3", "split,a,b,c", "split" + 8 * ",1"]
)
def test_what_is_no_tile_is_a_usage_error(text, capsys):
    with pytest.raises(SystemExit) as exit:
        matrix.main(["--tile", text])
    assert exit.value.code == 2
    assert f"{text!r} is no tile; one is implicit,128,128,64,8,3" in capsys.readouterr().err


def test_a_tile_is_read():
    assert matrix.read_tile("split,16,64,32") == Tile("split", 16, 64, 32)
    assert matrix.read_tile("implicit,128,64,32,8,2,1,1") == Tile("implicit", 128, 64, 32, 8, 2, 1, True)


def test_nothing_is_compiled_while_triton_interprets(capsys):
    assert matrix.main([]) == 2
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="Triton interprets here"):
        compilation.compile_kernel(tiles.module("implicit"), *CASE[1:3], "float16", "sm_90")


def test_to_ask_for_what_there_is_not_is_a_usage_error(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert matrix.main(["--only", "conv9_1", "--jobs", "1"]) == 2
    assert "no case has all of ['conv9_1']; some are: conv1_1" in capsys.readouterr().err


# --- listings -----------------------------------------------------------------------------------------------------

SASS = """
 Function convolution:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:592
        Function : convolution
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
                                                             /* 0x000fe20000000a00 */
        /*0010*/                   LDGSTS.E.BYPASS.128 [R5+0x8000], desc[UR8][R2.64], P1 ;
        /*0020*/              @!P0 HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0 ;
        /*0030*/                   IADD3 R2, P0, R2, 0x10, RZ ;
        /*0040*/              @P2  BRA 0x10 ;
        /*0050*/                   STL.64 [R1+0x8], R6 ;
        /*0060*/             @!UP1 BRA 0x80 ;
        /*0070*/                   BRA 0x0 ;
        /*0080*/                   EXIT ;
"""


def test_sass_is_read():
    found = list(compilation.read_sass(SASS))
    assert [one.kind for one in found] == [
        "other", "copy", "wgmma", "other", "other", "spill", "other", "other", "other",
    ]  # fmt: skip
    assert [one.address for one in found] == list(range(0, 0x90, 0x10))
    assert [one.target for one in found if one.name == "BRA"] == [0x10, 0x80, 0]


def test_the_main_loop_is_the_innermost_that_multiplies():
    loop = compilation.main_loop(list(compilation.read_sass(SASS)))
    assert [one.address for one in loop] == [0x10, 0x20, 0x30, 0x40]
    without = [Instruction(0, "IADD3"), Instruction(16, "BRA", 0), Instruction(32, "HMMA.16816.F32")]
    assert compilation.main_loop(without) == []


AMDGCN = """
\t.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
convolution:
; %bb.0:
\ts_load_dwordx4 s[4:7], s[0:1], 0x0
\ts_cbranch_scc1 .LBB0_2
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tglobal_load_dwordx4 v[2:5], v[0:1], off
\tds_write_b128 v9, v[2:5]
\tv_mfma_f32_32x32x8_f16 a[0:15], v[2:3], v[4:5], a[0:15]
\ts_cbranch_scc0 .LBB0_1
.LBB0_2:
\ts_endpgm
    .sgpr_spill_count: 2
    .vgpr_count:     132
    .vgpr_spill_count: 0
"""


def test_amdgcn_is_read():
    registers, spills, instructions = compilation.read_hsaco({"amdgcn": AMDGCN})
    assert (registers, spills) == (132, 2)
    assert [one.kind for one in compilation.main_loop(instructions)] == ["load", "shared", "mfma", "other"]
