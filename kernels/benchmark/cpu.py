"""What a person without a GPU can use: the exported program on a processor, by five ways of running it.

All compute in float32 on the same number of threads. OpenVINO and Inductor may choose lower precisions by themselves on
some processors: OpenVINO is told not to, and what comes out is compared before anything is timed.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from kernels.benchmark.clock import Run
from kernels.benchmark.contest import Absent, Peer
from kernels.benchmark.peers import compile_module, installed, on_channels_last


def every(program: ExportedProgram, threads: int, images: Tensor) -> list[Peer]:
    """The first is what the others are compared with. `threads` is what torch was told as well; `images` are as those
    that will come."""
    return [
        Peer("eager", "the program's module, NCHW", lambda: program.module()),
        Peer(
            "eager channels_last", "weights and images channels_last", lambda: on_channels_last(last(program))
        ),
        Peer(
            "torch.compile",
            "Inductor's C++, frozen weights, channels_last",
            lambda: inductor(program, images),
        ),
        Peer(
            "ONNX Runtime", f"CPUExecutionProvider, {threads} threads", lambda: onnxruntime(program, threads)
        ),
        Peer(
            "OpenVINO", f"CPU, latency hint, float32, {threads} threads", lambda: openvino(program, threads)
        ),
    ]


def last(program: ExportedProgram) -> torch.nn.Module:
    return program.module().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def inductor(program: ExportedProgram, images: Tensor) -> Run:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in compilers if name):
        raise Absent("Inductor needs a C++ compiler; there is none")
    return compile_module(last(program), {"freezing": True}, images)


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The program as ONNX, by torch's exporter."""
    installed("onnxscript")
    found = torch.onnx.export(program, dynamo=True, verbose=False)
    assert found is not None
    return found.model_proto.SerializeToString()


def onnxruntime(program: ExportedProgram, threads: int) -> Run:
    runtime = installed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(onnx_bytes(program), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return run


def openvino(program: ExportedProgram, threads: int) -> Run:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report each conversion
    runtime: Any = installed("openvino")
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = runtime.compile_model(runtime.convert_model(program), "CPU", hints).create_infer_request()

    def run(images: Tensor) -> Tensor:
        found = request.infer([images.numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(found[0])

    return run
