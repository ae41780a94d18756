"""What a face that several judges labelled trains on, and where its valence and arousal go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fer_lab.data.augment import Augment
from fer_lab.data.cache import Cache, open_cache
from fer_lab.data.datamodule import FaceData
from fer_lab.data.draw import draw
from fer_lab.data.faces import DataError, Faces
from fer_lab.data.jaffe import Jaffe, read_ratings
from fer_lab.data.splits import Official
from fer_lab.data.synthetic import Synthetic


class Epochs:
    """What FaceData asks its trainer for."""

    def __init__(self, epoch: int) -> None:
        self.current_epoch, self.max_epochs, self.global_rank, self.world_size = epoch, 500, 0, 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """56 training faces whose ten judges differ, the last of them unjudged; 14 to validate."""
    source = Synthetic(train=56, validation=14, test=0, size=8)
    known = open_cache(source, 8, 1, tmp_path_factory.mktemp("cache"), workers=0, progress=False)
    votes = np.random.default_rng(0).multinomial(10, np.full(7, 1 / 7), 70).astype(np.float32) / 10
    votes[55] = np.nan
    return Cache(known.images, replace(known.index, votes=votes), ())


def data_of(cache: Cache, labels: str, epoch: int = 0, seed: int = 0, **augment: float) -> FaceData:
    data = FaceData(cache, Official()(cache.index), Augment(**augment), 16, seed=seed, labels=labels)
    data.trainer = Epochs(epoch)
    return data


def by_row(batches) -> torch.Tensor:
    """Labels in the order of the cache."""
    batches = list(batches)
    order = torch.cat([faces.positions for faces in batches]).argsort()
    return torch.cat([faces.labels for faces in batches])[order]


def test_majority_is_the_class_and_the_default(cache):
    labels = by_row(data_of(cache, "majority").train_dataloader())
    assert torch.equal(labels, torch.from_numpy(cache.index.labels[:56]))
    assert FaceData(cache, Official()(cache.index), Augment(), 16).labels == "majority"


def test_crossentropy_trains_on_the_shares_of_the_judges(cache):
    shares = by_row(data_of(cache, "crossentropy").train_dataloader())
    assert shares.shape == (56, 7)
    assert np.array_equal(shares[:55].numpy(), cache.index.votes[:55])
    assert shares[55].tolist() == np.eye(7)[cache.index.labels[55]].tolist()  # nobody judged it


def test_probability_draws_each_face_from_its_judges_anew_each_epoch(cache):
    drawn = torch.stack(
        [by_row(data_of(cache, "probability", epoch).train_dataloader()) for epoch in range(300)]
    )
    assert drawn.dtype == torch.int64
    counts = torch.stack([(drawn == label).sum(0) for label in range(7)], dim=1).double()  # (56, 7)
    wanted = np.nan_to_num(cache.index.votes[:55]) * 300
    spread = np.sqrt(wanted * (1 - wanted / 300))
    assert np.abs((counts[:55].numpy() - wanted) / np.maximum(spread, 1)).max() < 5
    assert (counts[:55].numpy()[wanted == 0] == 0).all()
    assert set(drawn[:, 55].tolist()) == {int(cache.index.labels[55])}


def test_a_draw_is_the_seed_s_and_the_epoch_s(cache):
    def labels(epoch, seed):
        return by_row(data_of(cache, "probability", epoch, seed).train_dataloader())

    assert torch.equal(labels(3, 1), labels(3, 1))
    assert not torch.equal(labels(3, 1), labels(4, 1)) and not torch.equal(labels(3, 1), labels(3, 2))


@pytest.mark.parametrize("labels", ["crossentropy", "probability"])
def test_validation_is_always_the_majority_s(cache, labels):
    data = data_of(cache, labels)
    wanted = torch.from_numpy(cache.index.labels[56:])
    assert torch.equal(by_row(data.val_dataloader()), wanted)
    found = list(data.evaluation(np.arange(56, 70), "none", torch.device("cpu")))
    assert torch.equal(torch.cat([faces.labels for faces in found]), wanted)


@pytest.mark.parametrize("labels", ["majority", "crossentropy", "probability"])
def test_mixup_mixes_all_of_them(cache, labels):
    data = data_of(cache, labels, mixup=0.4)
    faces = data.prepare(next(iter(data.train_dataloader())), training=True)
    assert faces.labels.shape == (16, 7)
    torch.testing.assert_close(faces.labels.sum(1), torch.ones(16))


def test_wrong_words_and_sets_without_votes_are_refused(cache):
    split = Official()(cache.index)
    with pytest.raises(DataError, match=r"data.labels='soft'; choices: majority, crossentropy, probability"):
        FaceData(cache, split, Augment(), 16, labels="soft")
    unjudged = Cache(cache.images, replace(cache.index, votes=None), ())
    with pytest.raises(DataError, match=r"data.labels=crossentropy, but synthetic has no votes"):
        FaceData(unjudged, split, Augment(), 16, labels="crossentropy")


# Valence and arousal


def test_drawn_faces_carry_their_valence_and_arousal(cache):
    for item in Synthetic(train=5, validation=2, test=2).items()[:6]:
        usage, person, number = item.name.split("/")
        position = int(number) + (10**9 if usage == "validation" else 0)
        face = draw(0, int(person[6:]), position, Synthetic().classes[item.label])
        assert item.affect == (face.valence, face.arousal)
    assert cache.index.affect.shape == (70, 2)


def test_affect_comes_with_every_batch(cache):
    affect = torch.from_numpy(cache.index.affect)
    data = data_of(cache, "majority")
    batches = [
        *data.train_dataloader(),
        *data.val_dataloader(),
        *data.evaluation(np.arange(56), "flip", torch.device("cpu")),
    ]
    assert all(isinstance(faces, Faces) for faces in batches)
    for faces in batches:
        assert torch.equal(faces.affect, affect[faces.positions])
    without = Cache(cache.images, replace(cache.index, affect=None), ())
    assert next(iter(data_of(without, "majority").train_dataloader())).affect is None


# JAFFE's ratings

RATINGS = """# HAP SAD SUR ANG DIS FEA PIC
-----------------------------------------
1 2.00 1.00 1.00 1.00 1.00 1.00 KA-AN1
2 1.00 1.50 1.00 5.00 2.50 2.00 KA-AN2
4 3.00 3.00 3.00 3.00 3.00 3.00 XX-HA2

Semantic Ratings Data (Fear Excluded)
# HAP SAD SUR ANG DIS PIC
1 4.00 2.00 1.00 1.00 1.00 KA-AN3
1 4.00 2.00 1.00 1.00 1.00 KA-AN1
"""


@pytest.mark.filterwarnings("ignore:.*results will not compare")
def test_the_ratings_of_jaffe_become_shares(drawn_jaffe, tmp_path):
    for path in drawn_jaffe.glob("KA.AN*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = tmp_path / "ratings.txt"
    table.write_text(RATINGS)
    with pytest.warns(
        UserWarning, match=r"has no ratings of 1 pictures \(KA.AN3.41 …\): they keep what was posed"
    ):
        items = Jaffe(str(tmp_path), str(table)).items()
    assert [Jaffe.classes[item.label] for item in items] == ["anger"] * 3
    # neutral, happiness, sadness, surprise, fear, disgust, anger: excess over 1, and 4 - the largest for neutral
    assert items[0].votes == pytest.approx((3 / 4, 1 / 4, 0, 0, 0, 0, 0))
    assert items[1].votes == pytest.approx((0, 0, 0.5 / 7, 0, 1 / 7, 1.5 / 7, 4 / 7))
    assert items[2].votes is None
    assert Jaffe(str(tmp_path), str(table)).stamp() != Jaffe(str(tmp_path)).stamp()
    assert all(item.votes is None for item in Jaffe(str(tmp_path)).items())


def test_ratings_that_would_change_nothing_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"data.source.ratings changes nothing with data.labels=majority: add"
    ):
        Jaffe(str(tmp_path), "ratings.txt", "majority")
    assert Jaffe(str(tmp_path), "ratings.txt", "probability").ratings == "ratings.txt"


def test_ratings_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.source.ratings=.*none.txt does not exist"):
        read_ratings(tmp_path / "none.txt")
    (tmp_path / "ratings.txt").write_text("HAP SAD\n")
    with pytest.raises(DataError, match=r"has no line like `1 2.87"):
        read_ratings(tmp_path / "ratings.txt")
    (tmp_path / "ratings.txt").write_text("1 6.00 1.00 1.00 1.00 1.00 1.00 KA-AN1\n")
    with pytest.raises(DataError, match=r"expected means of 1 to 5"):
        read_ratings(tmp_path / "ratings.txt")
