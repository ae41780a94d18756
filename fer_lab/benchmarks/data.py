"""Augmented training batches: our data path against torchvision's ImageFolder, v2 transforms and DataLoader.

Ours gathers from the warm cache and augments whole batches in this process; torchvision decodes and augments
picture by picture. It gets its best of pictures augmented by PIL or as tensors, with 0, 1 or 2 workers, kept
alive between epochs. Both deliver every training face once an epoch, (B, 1, 48, 48) float32 in 0..1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.benchmarks.measure import BenchmarkError, Cost, Figure, compare, in_turn, now

if TYPE_CHECKING:
    from torch import Tensor

    from fer_lab.benchmarks.setting import Setting
    from fer_lab.data.datamodule import FaceData

TARGET = 10
WORKERS = (0, 1, 2)


def measure(setting: Setting, repeats: int, batch_size: int) -> Iterator[Figure]:
    from fer_lab.build import build_data
    from fer_lab.train import set_threads

    words = [
        "data=fer2013",
        "augment=standard",
        f"data.root={setting.faces}",
        f"data.batch_size={batch_size}",
    ]
    cfg = setting.config("data", *words)
    set_threads(cfg.threads)
    data = build_data(cfg)
    names = [data.index.names[row] for row in data.split.train]
    rates = {
        (kind, workers): trial(setting.faces, names[:: len(WORKERS) * 2], batch_size, kind, workers)
        for kind in ("PIL", "tensor")
        for workers in WORKERS
    }
    kind, workers = max(rates, key=lambda choice: rates[choice])
    peer = loader(setting.faces, names, batch_size, kind, workers)
    same_work({"ours": our_batches(data), "torchvision": iter(peer)}, len(names))  # warms both of them up
    costs = in_turn(
        {"ours": lambda: epoch(our_batches(data)), "peer": lambda: epoch(peer)}, repeats, warm_ups=0
    )
    best = f"augments {kind}, {workers} workers"
    what = f"augmented images per second, {len(names)} of {setting.source}; torchvision at its best: {best}"
    yield compare(
        "data path, ours / torchvision", what, costs["ours"], costs["peer"], TARGET, clock="wall", at_most=False,
        images=len(names), torchvision_choices={f"{kind}, {workers} workers": rate for (kind, workers), rate in rates.items()},
    )  # fmt: skip


def trial(root: Path, names: Sequence[str], batch_size: int, kind: str, workers: int) -> int:
    """Images per second of torchvision on a part of the pictures, workers already running."""
    batches = loader(root, names, batch_size, kind, workers)
    epoch(batches)
    return round(len(names) / epoch(batches).wall)


def our_batches(data: FaceData) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in data.train_dataloader():
        faces = data.prepare(batch, training=True)
        yield faces.images, faces.labels


def epoch(batches: Iterable[Any]) -> Cost:
    begin = now()
    for _ in batches:
        pass
    return now() - begin


def same_work(peers: dict[str, Iterator[Any]], count: int) -> None:
    """Refuses peers that differ in shape, type, range, or class counts (each numbers classes in its own way)."""
    import torch

    seen = {}
    for name, batches in peers.items():
        first, labels = next(batches)
        tally = Counter(labels.tolist())
        low, high = float(first.min()), float(first.max())
        for images, more in batches:
            tally.update(more.tolist())
            low, high = min(low, float(images.min())), max(high, float(images.max()))
        fits = first.dtype == torch.float32 and low >= 0 and 0.5 < high <= 1 and tally.total() == count
        seen[name] = (tuple(first.shape), sorted(tally.values()), fits)
    if len({(shape, str(tally)) for shape, tally, _ in seen.values()}) > 1 or not all(
        fits for *_, fits in seen.values()
    ):
        raise BenchmarkError(
            f"the data paths deliver different things (first shape, images per class, fine): {seen}"
        )


def loader(root: Path, names: Sequence[str], batch_size: int, kind: str, workers: int) -> Any:
    """torchvision's path over exactly the training faces that we use, in shuffled batches."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    def grey(path: str) -> Image.Image:
        return Image.open(path).convert("L")

    geometry = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
    ]
    steps = [*geometry, v2.PILToTensor()] if kind == "PIL" else [v2.PILToTensor(), *geometry]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.RandomErasing(0.5)])
    pictures = ImageFolder(str(root / "train"), transform, loader=grey)
    wanted = set(names)
    pictures.samples = [
        pair for pair in pictures.samples if Path(pair[0]).relative_to(root).as_posix() in wanted
    ]
    if len(pictures.samples) != len(names):
        raise BenchmarkError(
            f"{root} is not FER2013 as folders train/ and test/ of pictures: give data.root=PATH of those"
        )
    return DataLoader(
        pictures,
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
