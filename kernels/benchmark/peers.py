"""What people would use on a GPU, on the same weights and inputs. `cudnn.benchmark` is on for all, in our disfavour."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.nn import functional

from kernels.benchmark.clock import Run
from kernels.benchmark.contest import Absent, Peer
from kernels.benchmark.nets import Vgg19, exported
from kernels.geometry import Precision
from kernels.packing import TYPES

COMPILED: dict[str, dict[str, Any]] = {
    "torch.compile": {},
    "torch.compile, frozen": {"freezing": True},
    "torch.compile, max-autotune": {"freezing": True, "max_autotune": True, "coordinate_descent_tuning": True},
    "torch.compile, Triton's convolutions": {
        "freezing": True, "max_autotune": True, "max_autotune_conv_backends": "TRITON",
    },
    "torch.compile, max-autotune, own graph": {
        "freezing": True, "max_autotune": True, "coordinate_descent_tuning": True, "triton.cudagraphs": True,
    },
}  # fmt: skip
"""Options of Inductor; all but the first on channels_last weights. The last brings a CUDA graph of its own."""


def set_precision(precision: Precision) -> None:
    """Whether float32 products may be tf32 ones, for every library that torch calls."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def every(net: Vgg19, precision: Precision, images: Tensor, device: str = "cuda") -> list[Peer]:
    """All but ours, for one cell; `net` in float32 on the CPU."""
    typed = copy.deepcopy(net).to(device, TYPES[precision])

    def last() -> Vgg19:
        return copy.deepcopy(typed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    found = [
        Peer("eager NCHW", "the module as it is", lambda: typed),
        Peer("eager channels_last", "weights and images channels_last", lambda: on_channels_last(last())),
        Peer("cuDNN fused", "channels_last, cudnn_convolution_relu: bias and ReLU in the convolution", lambda: cudnn_fused(last())),
        Peer("unfold + cuBLAS", "the window matrix written down, then a matrix product", lambda: unfolded(typed)),
    ]  # fmt: skip
    for name, options in COMPILED.items():
        found.append(compiled(name, options, typed if not options else last(), images))
    found += [
        Peer("cudnn-frontend", "its graph API: convolution, bias, ReLU in one engine", lambda: frontend(last(), images)),
        Peer("ONNX Runtime CUDA", "CUDAExecutionProvider on the ONNX export", lambda: onnxruntime(net, precision)),
        Peer("TensorRT", "through torch_tensorrt", lambda: tensorrt(typed, images)),
        Peer("FlagGems", "torch's operations replaced by Triton ones", lambda: flag_gems(typed)),
    ]  # fmt: skip
    if images.shape[0] == 1 and precision == "float16":  # its own precision is always the same
        what = "R0-style (corrected): one block per convolution, a thread per filter, float64"
        found.append(Peer("R0-style", what, lambda: reference_system(net), is_peer=False, is_slow=True))
    return found


def on_channels_last(net: Run) -> Run:
    return lambda images: net(images.contiguous(memory_format=torch.channels_last))


def compiled(name: str, options: dict[str, Any], net: nn.Module, images: Tensor) -> Peer:
    def make() -> Run:
        return compile_module(net, {"triton.cudagraphs": False, **options}, images, bool(options))

    what = ", ".join(f"{key}={value}" for key, value in options.items()) or "the defaults, NCHW"
    return Peer(name, what, make, has_own_graph="triton.cudagraphs" in options)


def compile_module(net: nn.Module, options: dict[str, Any], images: Tensor, is_last: bool = True) -> Run:
    """Compiled for images like these. Whether weights are constants, Dynamo asks Inductor's settings while it traces:
    the `options` of torch.compile hold only after that, and alone would leave every weight an input."""
    module: Run = torch.compile(net, options=options, dynamic=False)
    run = on_channels_last(module) if is_last else module
    with inductor_config.patch(freezing=options.get("freezing", False)):
        run(images)
    return run


def walked(net: Vgg19, convolve: Callable[[Tensor, nn.Conv2d], Tensor]) -> Run:
    """The net with `convolve` (bias and ReLU included) for its convolutions."""
    steps = list(zip(net.layers.values(), net.weighted(), strict=True))

    def run(images: Tensor) -> Tensor:
        hidden = images
        for layer, module in steps:
            if isinstance(module, nn.Conv2d):
                hidden = convolve(hidden, module)
                hidden = functional.max_pool2d(hidden, 2) if layer.pool else hidden
            else:
                hidden = module(hidden.flatten(1))
                hidden = hidden.relu() if layer.relu else hidden
        return hidden

    return run


def cudnn_fused(net: Vgg19) -> Run:
    def convolve(images: Tensor, module: nn.Conv2d) -> Tensor:
        return torch.cudnn_convolution_relu(images, module.weight, module.bias, (1, 1), (1, 1), (1, 1), 1)

    run = walked(net, convolve)
    return lambda images: run(images.contiguous(memory_format=torch.channels_last))


def unfolded(net: Vgg19) -> Run:
    def convolve(images: Tensor, module: nn.Conv2d) -> Tensor:
        windows = functional.unfold(images, 3, padding=1)  # (batch, channels * 9, pixels)
        assert module.bias is not None
        sums = module.weight.flatten(1) @ windows + module.bias[:, None]
        return sums.relu_().unflatten(2, images.shape[2:])

    return walked(net, convolve)


R0_SOURCE = """
extern "C" __global__ void convolve(const double* image, const double* weight, const double* bias, double* output,
                                    int channels, int height, int width) {
    int filter = threadIdx.x;
    for (int row = 0; row < height; row++)
        for (int column = 0; column < width; column++) {
            double sum = bias[filter];
            for (int channel = 0; channel < channels; channel++)
                for (int tap = 0; tap < 9; tap++) {
                    int y = row + tap / 3 - 1, x = column + tap % 3 - 1;
                    if (y >= 0 && y < height && x >= 0 && x < width)
                        sum += image[(channel * height + y) * width + x] * weight[(filter * channels + channel) * 9 + tap];
                }
            output[(filter * height + row) * width + column] = sum > 0 ? sum : 0;
        }
}
"""
"""The scheme of the reference system's CUDA program, without its faults: see ../shared/kernels.md, section 0."""


def reference_system(net: Vgg19) -> Run:
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        raise Absent("this torch compiles no CUDA source")
    kernel = compile_kernel(R0_SOURCE, "convolve")
    doubled = copy.deepcopy(net).to("cuda", torch.float64)

    def convolve(images: Tensor, module: nn.Conv2d) -> Tensor:
        _, channels, height, width = images.shape
        output = images.new_empty((1, module.out_channels, height, width))
        arguments = [images.contiguous(), module.weight, module.bias, output, channels, height, width]
        kernel(grid=(1, 1, 1), block=(module.out_channels, 1, 1), args=arguments)
        return output

    run = walked(doubled, convolve)
    return lambda images: run(images.double())


def installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Absent(f"{name} is not installed") from None


def frontend(net: Vgg19, images: Tensor) -> Run:
    """A plan for each convolution, chosen by cuDNN's heuristics, writing into an output of its own."""
    cudnn = installed("cudnn")
    kinds = {
        torch.float16: cudnn.data_type.HALF,
        torch.bfloat16: cudnn.data_type.BFLOAT16,
        torch.float32: cudnn.data_type.FLOAT,
    }
    handle = cudnn.create_handle()
    plans: dict[nn.Conv2d, Callable[[Tensor], Tensor]] = {}

    def plan(given: Tensor, module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        single = cudnn.data_type.FLOAT
        graph = cudnn.pygraph(
            io_data_type=kinds[given.dtype],
            intermediate_data_type=single,
            compute_data_type=single,
            handle=handle,
        )
        assert module.bias is not None
        bias = module.bias[None, :, None, None]
        x, w, b = (graph.tensor_like(tensor) for tensor in (given, module.weight, bias))
        sums = graph.conv_fprop(image=x, weight=w, padding=[1, 1], stride=[1, 1], dilation=[1, 1])
        y = graph.relu(input=graph.add(a=sums, b=b))
        y.set_output(True)
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        shape = (given.shape[0], module.out_channels, *given.shape[2:])
        output = given.new_empty(shape).to(memory_format=torch.channels_last)
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=given.device)

        def execute(images: Tensor) -> Tensor:
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
            graph.execute({x: images, w: module.weight, b: bias, y: output}, workspace, handle=handle)
            return output

        return execute

    def convolve(given: Tensor, module: nn.Conv2d) -> Tensor:
        if module not in plans:
            plans[module] = plan(given, module)
        return plans[module](given)

    run = walked(net, convolve)
    return lambda given: run(given.contiguous(memory_format=torch.channels_last))


def onnxruntime(net: Vgg19, precision: Precision) -> Run:
    runtime = installed("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise Absent("this onnxruntime has no CUDAExecutionProvider")
    if precision == "bfloat16":
        raise Absent("its convolutions take no bfloat16")
    from kernels.benchmark.cpu import onnx_bytes

    stream = str(torch.cuda.current_stream().cuda_stream)
    options = {
        "use_tf32": int(precision == "tf32"), "cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": 1,
        "user_compute_stream": stream,
    }  # fmt: skip
    session = runtime.InferenceSession(
        onnx_bytes(exported(copy.deepcopy(net).to(TYPES[precision]))),
        providers=[("CUDAExecutionProvider", options)],
    )
    name, result = session.get_inputs()[0].name, session.get_outputs()[0].name
    kind = {torch.float32: 1, torch.float16: 10}[TYPES[precision]]  # of ONNX's TensorProto

    def run(images: Tensor) -> Tensor:
        images = images.contiguous()
        output = images.new_empty((len(images), net.classes))
        binding = session.io_binding()
        for bind, key, tensor in ((binding.bind_input, name, images), (binding.bind_output, result, output)):
            bind(key, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding)
        return output

    return run


def tensorrt(net: Vgg19, images: Tensor) -> Run:
    module = installed("torch_tensorrt")
    return module.compile(net, ir="dynamo", inputs=[images], enabled_precisions={images.dtype})


def flag_gems(net: Vgg19) -> Run:
    module = installed("flag_gems")

    def run(images: Tensor) -> Tensor:
        with module.use_gems():
            return net(images)

    return run
