"""From cached pixels and a split to batches of augmented faces on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from fer_lab.data.augment import Augment, Draws
from fer_lab.data.balance import Balance
from fer_lab.data.cache import Cache
from fer_lab.data.faces import DataError, Faces, Index
from fer_lab.data.splits import Positions, Split


class FaceData(pl.LightningDataModule):
    """Whole batches gathered from the memory map and augmented on the device; no loader processes.

    Epoch e draws its order, its augmentation and its views from a generator seeded with (seed, e): a run
    that was interrupted repeats the epoch it lost exactly. `features` (rows, 1 + k, …), once set, stand in
    for the images of the split's `rows`: column 0 is the plain face, the others its k fixed views.
    """

    def __init__(
        self,
        cache: Cache,
        split: Split,
        augment: Augment,
        batch_size: int,
        balance: Balance | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"data.batch_size={batch_size}; expected at least 1")
        self.cache, self.split, self.augment = cache, split, augment
        self.batch_size, self.balance, self.seed = batch_size, balance or Balance(), seed
        self.features: Tensor | None = None
        self.generator = torch.Generator()

    @property
    def index(self) -> Index:
        return self.cache.index

    @cached_property
    def rows(self) -> Tensor:
        """Every row of the cache that the split uses, in order."""
        return torch.from_numpy(
            np.sort(np.concatenate([self.split.train, self.split.validation, self.split.test]))
        )

    @cached_property
    def view_table(self) -> Draws:
        """The random numbers of every item's k fixed views, row by row; the same for every epoch and run."""
        count = len(self.index) * (self.augment.views or 0)
        return self.augment.draw(count, torch.Generator().manual_seed(self.seed))

    @property
    def resolution(self) -> int | None:
        """The side that this epoch trains on, where the augmentation says so."""
        epochs = self.trainer.max_epochs if self.trainer else None
        return self.augment.resolution(
            self.trainer.current_epoch / epochs if self.trainer and epochs else 1.0
        )

    def train_dataloader(self) -> Batches:
        return Batches(self, self.split.train, training=True)

    def val_dataloader(self) -> Batches:
        return Batches(self, self.split.validation, training=False)

    def on_after_batch_transfer(self, batch: Faces, dataloader_idx: int) -> Faces:
        return self.prepare(batch, training=bool(self.trainer and self.trainer.training))

    def prepare(self, faces: Faces, training: bool, views: str = "none") -> Faces:
        """Float images in 0..1: augmented when training, else the (V, B, C, H, W) test-time `views`."""
        count = len(faces.positions)
        view = self.choose_views(count) if training else torch.zeros(count, dtype=torch.long)
        if self.features is not None and faces.images.ndim < 4:
            found = self.features[torch.searchsorted(self.rows, faces.positions.cpu()), view]
            return faces._replace(features=found.to(faces.labels.device))
        if not training:
            return faces._replace(images=self.augment.test_views(faces.images, views))
        images = self.augment.apply(faces.images, self.draws(faces.positions, view), self.resolution)
        if self.augment.mixup:
            images, labels = self.augment.mix(images, faces.labels, len(self.index.classes), self.generator)
            return faces._replace(images=images, labels=labels)
        return faces._replace(images=images)

    def evaluation(
        self, rows: Positions, views: str, device: torch.device, as_images: bool = False
    ) -> Iterator[Faces]:
        """Prepared batches of `rows` on `device`; from `features` where they will do, unless `as_images`."""
        for faces in Batches(self, rows, training=False, as_images=as_images or views != "none"):
            moved = faces._replace(images=faces.images.to(device), labels=faces.labels.to(device))
            yield self.prepare(moved, training=False, views=views)

    def all_views(self, faces: Faces) -> Tensor:
        """(B, 1 + k, C, H, W): each plain face and then its fixed views, as a frozen backbone will see them."""
        views = [self.augment.test_views(faces.images)[0]]
        for view in range(1, (self.augment.views or 0) + 1):
            columns = torch.full((len(faces.positions),), view)
            views.append(self.augment.apply(faces.images, self.draws(faces.positions, columns)))
        return torch.stack(views, dim=1)

    def choose_views(self, count: int) -> Tensor:
        """(count,) columns of `features`: 0 without fixed views, else 1..k at random."""
        if not self.augment.views:
            return torch.zeros(count, dtype=torch.long)
        return torch.randint(1, self.augment.views + 1, (count,), generator=self.generator)

    def draws(self, positions: Tensor, view: Tensor) -> Draws:
        if not self.augment.views:
            return self.augment.draw(len(positions), self.generator)
        return self.view_table.rows(positions.cpu() * self.augment.views + view - 1)


class Batches:
    """An epoch of Faces, as an iterable that knows its length; shuffled and balanced when training."""

    def __init__(self, data: FaceData, rows: Positions, training: bool, as_images: bool = False) -> None:
        self.data, self.rows, self.training = data, rows, training
        self.as_images = as_images or data.features is None
        self.images = torch.from_numpy(np.asarray(data.cache.images))
        self.labels = torch.from_numpy(data.index.labels)

    @property
    def size(self) -> int:
        """Images a batch; evaluation needs no gradients, so it takes twice as many at a time."""
        return self.data.batch_size if self.training else 2 * self.data.batch_size

    def __len__(self) -> int:
        count = self.data.balance.size(self.labels[self.rows].numpy()) if self.training else len(self.rows)
        return -(-count // self.size)

    def __iter__(self) -> Iterator[Faces]:
        rows = torch.from_numpy(self.rows)
        if self.training:
            rows = rows[self.order()]
        for positions in rows.split(self.size):
            images = self.images[positions] if self.as_images else positions
            yield Faces(images, self.labels[positions], positions)

    def order(self) -> Tensor:
        """This epoch's balanced, shuffled order, from a generator that the epoch's augmentation goes on with."""
        trainer = self.data.trainer
        epoch = trainer.current_epoch if trainer else 0
        generator = self.data.generator.manual_seed(1_000_003 * self.data.seed + epoch)
        kept = torch.from_numpy(self.data.balance(self.labels[self.rows].numpy(), generator.initial_seed()))
        return kept[torch.randperm(len(kept), generator=generator)]
