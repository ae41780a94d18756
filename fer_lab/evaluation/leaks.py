"""Copies among the pictures of a data set: the same pixels, or the same photograph encoded, resized, mirrored,
equalised or cropped a little again.

Every picture is compared with every other one, as 16x16 thumbnails in blocks of matrix products; what is alike there is
compared again in full. Nothing grows with the square of the pictures but the time.

The thresholds were set at 48 pixels on the real FER2013, on copies planted in it and on drawn faces. Two pictures score
the mean of how their whole and their fine detail correlate. THRESHOLD finds 99% of copies made by jpeg at quality 30,
by mirroring, equalising, smaller or larger sizes and back, and all of these one after the other. Of 96 links between
faces of FER2013 that were looked at in each of four bands, wrong ones were 28 of 96 at 0.66-0.70, 4 at 0.70-0.74,
none at 0.74-0.78 and none at 0.78-0.82. Drawn faces have less detail to tell them apart: of the 3.9 million pairs of
2,800, 14 reach it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

if TYPE_CHECKING:
    from fer_lab.data.shards import Images

THUMBNAIL = 16
COARSE = 2.0  # thumbnail pixels: what is smoother than this is no part of a thumbnail
FINE = 1.5  # pixels: what is smoother than this is no detail
COMPARED_SIDE = 96  # larger pictures are compared at this side
ALIKE = 0.68  # correlation of thumbnails from which a pair is compared in full
FLOOR = 0.66  # scores below are forgotten
THRESHOLD = 0.74
ROWS, COLUMNS = 1024, 8192  # pictures in a block of products: 32 MB
CHUNK_BYTES = 2**22  # pictures that are equalised at a time
PAIRS_KEPT = 2_000_000

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Pairs:
    """Rows `first` < `second` that are alike, and their `scores` in FLOOR..1; 1 is the same pixels or their mirror."""

    first: Rows
    second: Rows
    scores: Floats

    def __len__(self) -> int:
        return len(self.first)

    def __add__(self, other: Pairs) -> Pairs:
        ours, theirs = vars(self), vars(other)
        return Pairs(**{name: np.concatenate([ours[name], theirs[name]]) for name in ours})


NONE = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def find_copies(images: Images, advance: Advance = lambda pictures: None) -> Pairs:
    """The strongest pairs that hold every group of copies together, at any threshold.

    `images` (N, C, S, S) uint8, of any size; read by blocks of rows. `advance` is told of pictures that are done.
    """
    originals = same_pixels(images)
    once = np.unique(originals)
    copies = np.flatnonzero(originals != np.arange(len(originals)))
    found = Pairs(originals[copies], copies, np.ones(len(copies), np.float32))
    for pairs in similar(images, once, thumbnails(images, once), advance):
        found = found + pairs
        if len(found) > PAIRS_KEPT:
            found = spanning(found, len(originals))
    return spanning(found, len(originals))


def groups_of(pairs: Pairs, count: int, threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """(count,) the number of each picture's group: what is joined by pairs of at least `threshold`."""
    kept = pairs.scores >= threshold
    ends = (pairs.first[kept], pairs.second[kept])
    graph = coo_matrix((np.ones(int(kept.sum()), np.int8), ends), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return groups.astype(np.int64)


def spanning(pairs: Pairs, count: int) -> Pairs:
    """Fewer pairs than pictures that give the same groups at every threshold: a maximum spanning forest."""
    order = np.lexsort((-pairs.scores, pairs.second, pairs.first))
    ends = np.stack([pairs.first[order], pairs.second[order]])
    best = order[np.flatnonzero(np.r_[True, (np.diff(ends) != 0).any(0)])] if len(order) else order
    costs = 2.0 - pairs.scores[best].astype(np.float64)  # a cost of 0 would be no edge
    graph = coo_matrix((costs, (pairs.first[best], pairs.second[best])), shape=(count, count))
    forest = minimum_spanning_tree(graph.tocsr()).tocoo()
    first, second = forest.row.astype(np.int64), forest.col.astype(np.int64)
    return Pairs(np.minimum(first, second), np.maximum(first, second), (2.0 - forest.data).astype(np.float32))


def same_pixels(images: Images) -> Rows:
    """(N,) the first row that holds the very pixels of each row."""
    first: dict[bytes, int] = {}
    found = np.empty(len(images), np.int64)
    for start, block in blocks(images):
        for row, picture in enumerate(block, start):
            key = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
            found[row] = first.setdefault(key, row)
    return found


def blocks(images: Images) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(first row, pictures) in pieces of about CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        yield start, np.ascontiguousarray(images[start : start + step])


def thumbnails(images: Images, rows: Rows) -> Floats:
    """(len(rows), T * T) of mean 0 and length 1: equalised, small, without the smooth shades that all faces share."""
    found = []
    step = max(1, CHUNK_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(rows), step):
        whole = equalised(images[rows[start : start + step]])
        small = averaged(whole, min(THUMBNAIL, whole.shape[-1]))
        rest = small - gaussian_filter(small, (0, COARSE, COARSE), mode="nearest")
        flat = rest.reshape(len(rest), -1)
        flat -= flat.mean(1, keepdims=True)
        found.append(flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-9))
    return np.concatenate(found)


def similar(images: Images, rows: Rows, thumbs: Floats, advance: Advance) -> Iterator[Pairs]:
    """Pairs of `rows` that score at least FLOOR, a block of rows at a time; `thumbs` are those rows' thumbnails."""
    side = round(thumbs.shape[1] ** 0.5)
    turned = np.arange(side * side).reshape(side, side)[:, ::-1].ravel()
    for start in range(0, len(rows), ROWS):
        ours = thumbs[start : start + ROWS]
        for mirrored, mine in ((False, ours), (True, np.ascontiguousarray(ours[:, turned]))):
            for first, second in alike(mine, thumbs, start):
                scores = compared(images, rows[first], rows[second], mirrored)
                kept = scores >= FLOOR
                yield Pairs(rows[first[kept]], rows[second[kept]], scores[kept])
        advance(len(ours))


def alike(mine: Floats, thumbs: Floats, start: int) -> Iterator[tuple[Rows, Rows]]:
    """Places (first, second) in `thumbs` of candidates among `mine`, which stand from `start` on, and those after."""
    for column in range(start, len(thumbs), COLUMNS):
        products = mine @ thumbs[column : column + COLUMNS].T
        first, second = np.divmod(np.flatnonzero(products >= ALIKE), products.shape[1])
        after = second + column > first + start
        yield first[after] + start, second[after] + column


def compared(images: Images, first: Rows, second: Rows, mirrored: bool) -> Floats:
    """(P,) how alike the pairs are in full: the mean correlation of the whole and of the detail."""
    side = min(images.shape[-1], COMPARED_SIDE)
    step = max(1, CHUNK_BYTES // (side * side))
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(first), step):
        ends = np.stack([first[start : start + step], second[start : start + step]])
        used, places = np.unique(ends, return_inverse=True)
        whole = averaged(equalised(images[used]), side)
        ours, theirs = places.reshape(ends.shape)
        parts.append(scored(whole, ours, theirs, mirrored))
    return np.concatenate(parts)


def scored(whole: Floats, first: Rows, second: Rows, mirrored: bool) -> Floats:
    """The scores of pairs of the equalised pictures `whole` (U, side, side)."""
    detail = whole - gaussian_filter(whole, (0, FINE, FINE))
    turn = -1 if mirrored else 1
    fine = correlation(detail[first], detail[second][:, :, ::turn])
    scores: Floats = np.float32(0.5) * (fine + 1)  # what it is at most
    hopeful = np.flatnonzero(scores >= FLOOR)
    coarse = correlation(whole[first[hopeful]], whole[second[hopeful]][:, :, ::turn])
    scores[hopeful] = 0.5 * (coarse + fine[hopeful])
    return scores


def correlation(ours: Floats, theirs: Floats) -> Floats:
    """(P,) the highest Pearson correlation of (P, S, S) pictures, one of them moved by up to a pixel each way."""
    side = ours.shape[-1]
    best = np.full(len(ours), -1, np.float32)
    if side < 4:
        return best
    middle = centred(ours[:, 1:-1, 1:-1])
    for down in range(3):
        for right in range(3):
            moved = centred(theirs[:, down : side - 2 + down, right : side - 2 + right])
            best = np.maximum(best, np.einsum("pi,pi->p", middle, moved))
    return best


def centred(pictures: Floats) -> Floats:
    """(P, n) of mean 0 and length 1."""
    flat = pictures.reshape(len(pictures), pictures.shape[1] * pictures.shape[2])
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.sqrt(np.einsum("pi,pi->p", flat, flat)).clip(1e-9)[:, None]


def equalised(images: NDArray[np.uint8]) -> Floats:
    """(N, S, S) grey in 0..1 whose histogram is flat, of (N, C, S, S): the same after any change of tone that keeps
    the order of the greys."""
    count, _, side, _ = images.shape
    grey = images[:, 0] if images.shape[1] == 1 else images.mean(1, dtype=np.float32).astype(np.uint8)
    flat = grey.reshape(count, -1).astype(np.intp) + 256 * np.arange(count)[:, None]
    histogram = np.bincount(flat.ravel(), minlength=256 * count).reshape(count, 256)
    ranks = (histogram.cumsum(1) - histogram / 2) / (side * side)
    return ranks.astype(np.float32).ravel()[flat].reshape(count, side, side)


def averaged(pictures: Floats, side: int) -> Floats:
    """(N, S, S) as (N, side, side), each pixel the mean of the area it stands for."""
    if pictures.shape[-1] == side:
        return pictures
    share = areas(pictures.shape[-1], side)
    return np.matmul(np.matmul(share, pictures), share.T)


def areas(old: int, new: int) -> Floats:
    """(new, old): how much of each old pixel stands in each new one; rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)[None]
    overlap = np.minimum(right, pixels + 1) - np.maximum(left, pixels)
    return (overlap.clip(0) * new / old).astype(np.float32)
