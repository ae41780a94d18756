"""From cached pixels and a split to batches of augmented faces on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from fer_lab.data.augment import Augment, Draws
from fer_lab.data.balance import Balance
from fer_lab.data.cache import Cache
from fer_lab.data.faces import LABELS, DataError, Faces, Index
from fer_lab.data.shards import Shards
from fer_lab.data.sharing import Share
from fer_lab.data.splits import Positions, Split
from fer_lab.data.stream import BLOCK_BYTES, read_ahead, rows_of, shuffled


class FaceData(pl.LightningDataModule):
    """Whole batches gathered from the memory map and augmented on the device; no loader processes.

    Epoch e draws its order, its augmentation and its views from a generator seeded with (seed, e): a run
    that was interrupted repeats the epoch it lost exactly. `features` (rows, 1 + k, …), once set, stand in
    for the images of the split's `rows`: column 0 is the plain face, the others its k fixed views.

    `batch_size` faces are a batch of one process, as in Lightning. Of several processes each draws the same numbers for
    the total batch and takes its share of the faces, so that they learn what one process with that batch would learn
    (but mixup mixes the faces of one process, and each process drops out its own units).

    `labels`, of training faces that several judges labelled: `majority` is the judges' choice, `crossentropy` the
    share (B, K) of them that chose each class, `probability` one drawn anew each epoch from those shares.
    Validation and test are always the majority's.

    `stream`, for sets that may not fit into memory: an epoch goes through the images by parts, and reads the next ones ahead.
    """

    def __init__(
        self,
        cache: Cache,
        split: Split,
        augment: Augment,
        batch_size: int,
        balance: Balance | None = None,
        seed: int = 0,
        labels: str = "majority",
        stream: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"data.batch_size={batch_size}; expected at least 1")
        if labels not in LABELS:
            raise DataError(f"data.labels={labels!r}; choices: {', '.join(LABELS)}")
        if labels != "majority" and cache.index.votes is None:
            raise DataError(
                f"data.labels={labels}, but {cache.index.name} has no votes of several judges; choices: majority"
            )
        self.cache, self.split, self.augment = cache, split, augment
        self.batch_size, self.balance, self.seed = batch_size, balance or Balance(), seed
        self.labels, self.stream = labels, stream
        self.features: Tensor | None = None
        self.generator = torch.Generator()

    @property
    def index(self) -> Index:
        return self.cache.index

    @cached_property
    def rows(self) -> Tensor:
        """Every row of the cache that the split uses, in order."""
        return torch.from_numpy(
            np.unique(np.concatenate([self.split.train, self.split.validation, self.split.test]))
        )

    @cached_property
    def view_table(self) -> Draws:
        """The random numbers of every item's k fixed views, row by row; the same for every epoch and run."""
        count = len(self.index) * (self.augment.views or 0)
        return self.augment.draw(count, torch.Generator().manual_seed(self.seed))

    @cached_property
    def votes(self) -> Tensor:
        """(N, K) shares of the judges; where an item has none, all of them chose its label."""
        assert self.index.votes is not None
        undefined = np.isnan(self.index.votes)
        certain = np.eye(len(self.index.classes), dtype=np.float32)[self.index.labels]
        return torch.from_numpy(np.where(undefined, certain, self.index.votes))

    @property
    def resolution(self) -> int | None:
        """The side that this epoch trains on, where the augmentation says so."""
        epochs = self.trainer.max_epochs if self.trainer else None
        return self.augment.resolution(
            self.trainer.current_epoch / epochs if self.trainer and epochs else 1.0
        )

    @property
    def share(self) -> Share:
        return Share(self.trainer.global_rank, self.trainer.world_size) if self.trainer else Share()

    def train_dataloader(self) -> Batches:
        return Batches(self, self.split.train, training=True, share=self.share)

    def val_dataloader(self) -> Batches:
        return Batches(self, self.split.validation, training=False, share=self.share)

    def on_after_batch_transfer(self, batch: Faces, dataloader_idx: int) -> Faces:
        return self.prepare(batch, training=bool(self.trainer and self.trainer.training))

    def prepare(self, faces: Faces, training: bool, views: str = "none") -> Faces:
        """Float images in 0..1: augmented when training, else the (V, B, C, H, W) test-time `views`."""
        count = len(faces.positions)
        view = self.choose_views(faces) if training else torch.zeros(count, dtype=torch.long)
        if self.features is not None and faces.images.ndim < 4:
            found = self.features[torch.searchsorted(self.rows, faces.positions.cpu()), view]
            return faces._replace(features=found.to(faces.labels.device))
        if not training:
            return faces._replace(images=self.augment.test_views(faces.images, views))
        images = self.augment.apply(faces.images, self.draws(faces, view), self.resolution)
        return self.augment.mix(faces._replace(images=images), len(self.index.classes), self.generator)

    def evaluation(
        self, rows: Positions, views: str, device: torch.device, as_images: bool = False
    ) -> Iterator[Faces]:
        """Prepared batches of `rows` on `device`; from `features` where they will do, unless `as_images`."""
        for faces in Batches(self, rows, training=False, as_images=as_images or views != "none"):
            affect = None if faces.affect is None else faces.affect.to(device)
            moved = faces._replace(
                images=faces.images.to(device), labels=faces.labels.to(device), affect=affect
            )
            yield self.prepare(moved, training=False, views=views)

    def all_views(self, faces: Faces) -> Tensor:
        """(B, 1 + k, C, H, W): each plain face and then its fixed views, as a frozen backbone will see them."""
        views = [self.augment.test_views(faces.images)[0]]
        for view in range(1, (self.augment.views or 0) + 1):
            columns = torch.full((len(faces.positions),), view)
            views.append(self.augment.apply(faces.images, self.draws(faces, columns)))
        return torch.stack(views, dim=1)

    def choose_views(self, faces: Faces) -> Tensor:
        """(B,) columns of `features`: 0 without fixed views, else 1..k at random."""
        if not self.augment.views:
            return torch.zeros(len(faces.positions), dtype=torch.long)
        count = faces.total or len(faces.positions)
        view = torch.randint(1, self.augment.views + 1, (count,), generator=self.generator)
        return view if faces.total is None else view[self.share.of(count)]

    def draws(self, faces: Faces, view: Tensor) -> Draws:
        if self.augment.views:
            return self.view_table.rows(faces.positions.cpu() * self.augment.views + view - 1)
        if faces.total is None:
            return self.augment.draw(len(faces.positions), self.generator)
        return self.augment.draw(faces.total, self.generator).rows(self.share.of(faces.total))


class Batches:
    """An epoch of Faces, as an iterable that knows its length; shuffled and balanced when training."""

    def __init__(
        self,
        data: FaceData,
        rows: Positions,
        training: bool,
        as_images: bool = False,
        share: Share | None = None,
    ) -> None:
        self.data, self.rows, self.training, self.share = data, rows, training, share or Share()
        self.as_images = as_images or data.features is None
        self.labels = torch.from_numpy(data.index.labels)
        self.affect = None if data.index.affect is None else torch.from_numpy(data.index.affect)

    @property
    def size(self) -> int:
        """Images a total batch; evaluation needs no gradients, so it takes twice as many at a time."""
        size = self.data.batch_size * self.share.world
        return size if self.training else 2 * size

    def __len__(self) -> int:
        count = self.data.balance.size(self.labels[self.rows].numpy()) if self.training else len(self.rows)
        return -(-count // self.size)

    def __iter__(self) -> Iterator[Faces]:
        rows = torch.from_numpy(self.rows)
        labels = self.labels
        if self.training:
            rows = rows[self.order()]
            labels = self.targets()
        batches = rows.split(self.size)
        alone = self.share.world == 1
        shares = batches if alone else [batch[self.share.of(len(batch))] for batch in batches]
        for batch, positions, images in zip(batches, shares, self.pictures(shares), strict=True):
            affect = None if self.affect is None else self.affect[positions]
            total = None if alone else len(batch)
            yield Faces(images, labels[positions], positions, affect=affect, total=total)

    def pictures(self, shares: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each share, or, where features stand in for them, its positions."""
        images = self.data.cache.images
        if not self.as_images:
            return iter(shares)
        if self.data.stream:
            return read_ahead(images, shares)
        if isinstance(images, Shards):
            return (torch.from_numpy(images[positions.numpy()]) for positions in shares)
        whole = torch.from_numpy(np.asarray(images))
        return (whole[positions] for positions in shares)

    def targets(self) -> Tensor:
        """What each row of the cache trains on in this epoch: (N,) class indices or (N, K) shares of its judges."""
        if self.data.labels == "majority":
            return self.labels
        if self.data.labels == "crossentropy":
            return self.data.votes
        return torch.multinomial(self.data.votes, 1, generator=self.data.generator).squeeze(1)

    def order(self) -> Tensor:
        """This epoch's balanced, shuffled order, from a generator that the epoch's augmentation goes on with."""
        trainer = self.data.trainer
        epoch = trainer.current_epoch if trainer else 0
        generator = self.data.generator.manual_seed(1_000_003 * self.data.seed + epoch)
        kept = torch.from_numpy(self.data.balance(self.labels[self.rows].numpy(), generator.initial_seed()))
        if not self.data.stream:
            return kept[torch.randperm(len(kept), generator=generator)]
        rows, images = torch.from_numpy(self.rows)[kept], self.data.cache.images
        return kept[shuffled(rows, rows_of(BLOCK_BYTES, images), generator)]
