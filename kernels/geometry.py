"""What a layer is, what the kernels support of it, and what it costs at the least."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Precision = Literal["float16", "bfloat16", "tf32", "float32"]
"""float16 and bfloat16 multiply what they store and sum in float32; tf32 stores float32 and multiplies 11 bits of it;
float32 multiplies all bits, as three products of tf32 numbers."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

STEM_CHANNELS = 4
"""Up to so many input channels a layer is a stem: a block of its sum spans several taps."""
CHANNEL_STEP = 16
"""Other layers have multiples of this: the shortest sum that a matrix instruction takes."""
LARGEST_KERNEL = 7
LARGEST_STRIDE = 2
LARGEST_TENSOR = 2**31 - 2**12
"""Elements: offsets are 32-bit numbers, and the last tile reaches beyond the end."""


class Unsupported(ValueError):
    """A layer that the kernels do not compute; the message names what and what they would."""


class Layer(NamedTuple):
    """A square convolution over images of height x width x channels, with bias, maybe ReLU, maybe 2x2 max pooling.

    A dense layer is one of kernel 1 over 1x1 images. `pool` halves the sides of the output and drops the last row or
    column of odd ones, as torch's max_pool2d(2).
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    relu: bool = False
    pool: bool = False

    @property
    def taps(self) -> int:
        return self.kernel * self.kernel

    @property
    def rows(self) -> int:
        """Of the convolution's output, before pooling."""
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def columns(self) -> int:
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of what is stored."""
        return (self.rows // 2, self.columns // 2) if self.pool else (self.rows, self.columns)

    @property
    def is_stem(self) -> bool:
        return self.channels <= STEM_CHANNELS

    def flops(self, batch: int) -> int:
        """Two for each multiplication, of all pixels of the convolution."""
        return 2 * batch * self.rows * self.columns * self.filters * self.taps * self.channels

    def bytes(self, batch: int, precision: Precision) -> int:
        """What has to be read and written once: input, weights, bias (float32), output."""
        height, width = self.output
        images = batch * (self.height * self.width * self.channels + height * width * self.filters)
        return (images + self.filters * self.taps * self.channels) * item_size(precision) + 4 * self.filters

    def seconds(self, batch: int, precision: Precision, flops: float, bandwidth: float) -> float:
        """The floor on a machine of `flops` per second in this precision and `bandwidth` bytes per second."""
        return max(self.flops(batch) / flops, self.bytes(batch, precision) / bandwidth)


def item_size(precision: Precision) -> int:
    return 2 if precision in ("float16", "bfloat16") else 4


def check(layer: Layer, batch: int = 1, precision: Precision = "float16") -> None:
    """Raises Unsupported, with everything that is at odds."""
    faults = kind_faults(layer) or size_faults(layer, batch, precision)
    if faults:
        raise Unsupported(f"the kernels do not take {'; '.join(faults)}")


def kind_faults(layer: Layer) -> list[str]:
    """What is wrong with a layer whatever the images; each with what would be right."""
    channels_fit = 1 <= layer.channels <= STEM_CHANNELS or (
        layer.channels > 0 and layer.channels % CHANNEL_STEP == 0
    )
    checks = (
        (
            channels_fit,
            f"{layer.channels} input channels (1..{STEM_CHANNELS}, or a multiple of {CHANNEL_STEP})",
        ),
        (layer.filters >= 1, f"{layer.filters} filters (1 or more)"),
        (1 <= layer.kernel <= LARGEST_KERNEL, f"a kernel of {layer.kernel} (1..{LARGEST_KERNEL})"),
        (1 <= layer.stride <= LARGEST_STRIDE, f"stride {layer.stride} (1..{LARGEST_STRIDE})"),
        (
            0 <= layer.padding < max(1, layer.kernel),
            f"padding {layer.padding} (less than the kernel, {layer.kernel})",
        ),
    )
    return [fault for right, fault in checks if not right]


def size_faults(layer: Layer, batch: int, precision: Precision) -> list[str]:
    """What is wrong with the images; `layer` is right otherwise."""
    parts = 2 if precision == "float32" and not layer.is_stem else 1  # the input is split into two images
    input_size = layer.height * layer.width * layer.channels * parts
    largest = batch * max(input_size, layer.rows * layer.columns * layer.filters)
    checks = (
        (batch >= 1, f"a batch of {batch} (1 or more)"),
        (min(layer.output) >= 1, f"images of {layer.height}x{layer.width}, of which nothing is left"),
        (
            largest < LARGEST_TENSOR,
            f"a batch of {batch}, with tensors of {largest} elements (less than {LARGEST_TENSOR}: split the batch)",
        ),
    )
    return [fault for right, fault in checks if not right]
