"""Runs of earlier versions are found again: keys that came later change a signature only where they change a run."""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from fer_lab import build
from fer_lab.build import load_data
from fer_lab.cli import CONF
from fer_lab.data.faces import digest
from fer_lab.identity import NEUTRAL, decisive, portable

TO_SEVEN = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


def composed(*words: str, classes: tuple[str, ...] = TO_SEVEN) -> DictConfig:
    """What build_data makes of the words, without the data."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["name=any", *words])
    OmegaConf.set_struct(cfg, False)
    cfg.classes, cfg.class_count, cfg.output_count = list(classes), len(classes), len(classes)
    cfg.size = cfg.augment.get("crop") or cfg.data.size
    return cfg


def test_the_signature_of_a_run_that_was_trained_at_commit_dae1dd1():
    """The digests of FER2013, of its split, and of no weights, as that run's record has them."""
    words = ("recipe=fer2013_small", "data.root=/anywhere/fer2013", "threads=4", "runs_dir=/elsewhere")
    data = "bf34402faa5f6f4ea02e0ab3d4db02e8643ebf2aa084f003c5ed102fbaf17a16"
    split = "6458232808a9cb73ea5991abcb866db4d9d7432a871e1e2f9616300b45485893"
    trained = "4878184ddc4ccd5251be869942758142e4be68d29d1c094fa4faf0c637406695"
    assert digest(decisive(composed(*words)), data, split, "None") == trained


def test_settings_of_commit_dae1dd1_that_have_got_the_most_new_keys_since():
    cfg = composed("data=jaffe", "split=kfold", "model=vgg19", classes=("a", "b"))
    assert digest(decisive(cfg)) == "ea64b891059f2272e1d0ad9fe16591d1c53cd95e76aae4582dfd4943b0673588"


def other(value: object) -> str:
    return {False: "true", None: "4", "majority": "crossentropy", "none": "box", 1.0: "0.5"}[value]  # type: ignore[index]


@pytest.mark.parametrize("key", sorted(NEUTRAL))
def test_a_later_key_counts_where_it_says_something_else(key):
    words = ("data=jaffe", "split=kfold")
    usual, changed = composed(*words), composed(*words, f"{key}={other(NEUTRAL[key])}")
    assert decisive(usual) != decisive(changed)
    section, _, leaf = key.rpartition(".")
    holder = OmegaConf.select(usual, section) if section else usual
    before = decisive(usual)
    del holder[leaf]  # as a config of before has it
    if key == "data.labels":
        del usual.data.source.labels  # which refers to it
    assert decisive(usual) == before


def test_a_margin_counts_around_a_crop_only():
    plain, wide = composed("data=jaffe"), composed("data=jaffe", "data.margin=0.2")
    assert decisive(plain) == decisive(wide)
    cropped, widened = (composed("data=jaffe", "data.crop=haar", f"data.margin={by}") for by in (0.0, 0.2))
    assert len({decisive(plain), decisive(cropped), decisive(widened)}) == 3


def test_a_process_keeps_one_copy_of_a_data_set_and_the_last_few_of_its_splits(tmp_path: Path):
    words = ("data.source.train=84", "data.source.validation=7", "data.source.test=7", "data.size=16")
    places = (f"cache_dir={tmp_path}", "split=kfold", "split.mix_subjects=true", "split.folds=10")
    folds = [load_data(composed(*words, *places, f"split.fold={fold}")) for fold in range(10)]
    assert len({id(one.cache) for one in folds}) == 1
    assert len(build._loaded) <= build.KEPT and len(build._caches) <= build.KEPT
    assert load_data(composed(*words, *places, "split.fold=9")) is folds[9]
    again = load_data(composed(*words, *places, "split.fold=0"))
    assert again is not folds[0] and again.split_digest == folds[0].split_digest
    assert again.cache is folds[0].cache and np.array_equal(again.split.test, folds[0].split.test)


def test_a_command_for_the_record_names_no_place_of_this_machine():
    said = (
        "python -m fer_lab.train recipe=fer2013_small data.root=/home/me/fer2013 runs_dir=/tmp/a seed=1 "
        "cache_dir=/tmp/b tracking.uri=sqlite:////tmp/c.db 'optimizer.betas=[0.9, 0.99]' model.weights=~/net.pt"
    )
    assert portable(said) == (
        "python -m fer_lab.train recipe=fer2013_small data.root=PATH seed=1 "
        "'optimizer.betas=[0.9, 0.99]' model.weights=PATH"
    )
