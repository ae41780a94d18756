"""Every yaml is composed, and what it names is built and used: a choice that cannot run is not offered."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.build import build_data, build_module, instantiate, targets
from fer_lab.cli import CONF, UsageError

GROUPS = (
    "augment",
    "balance",
    "data",
    "model",
    "optimizer",
    "recipe",
    "scheduler",
    "split",
    "task",
    "trainer",
)
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
SIDES = {"basic2": 80}  # in pixels: what vanishes in it at 48; true sides are 224 (test_reference_nets.py)
SMALL = ["data.source.train=42", "data.source.validation=14", "data.source.test=14"]


def composed(*overrides: str, tmp_path: Path) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(
            "train", overrides=[f"cache_dir={tmp_path}", *overrides], return_hydra_config=True
        )
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Where each data set is drawn once."""
    return tmp_path_factory.mktemp("drawn")


def data_of(choice: str, drawn: Path) -> list[str]:
    """Overrides that give a data set something to read: its own layout, drawn."""
    from fer_lab.data import draw, layouts

    root = drawn / choice
    if root.exists():
        pass
    elif choice == "jaffe":
        draw.write_jaffe(root)
    elif choice == "fer2013":
        draw.write_fer2013_folders(root, {"train": 42, "validation": 14, "test": 14})
    elif choice == "folder":
        draw.write_folder(root, {"train": 42, "validation": 14, "test": 14})
    elif choice == "ferplus":
        layouts.write_ferplus(root, {"train": 64, "validation": 24, "test": 24})
    elif choice == "rafdb":
        layouts.write_rafdb(root, {"train": 42, "test": 14})
    elif choice == "affectnet":
        layouts.write_affectnet(root, {"train": 48, "test": 16}, size=64)
    elif choice == "affectnet_old":
        layouts.write_affectnet_old(root, {"train": 66, "test": 22})
    elif choice == "synthetic":
        return SMALL
    else:
        pytest.skip(f"data_of() draws no {choice} yet")
    crop = (
        ["data.crop=none"] if choice == "jaffe" else []
    )  # the detector does not take every drawing for a face
    return [f"data.root={root}", "data.size=48", *crop]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda word: str(word))
def test_every_choice_composes_and_makes_a_step(group, choice, tmp_path, drawn):
    words = [f"{group}={choice}"]
    if group == "recipe":
        recipe = composed(*words, tmp_path=tmp_path)
        data, model = str(recipe.hydra.runtime.choices.data), str(recipe.hydra.runtime.choices.model)
        words += ["split.fold=0"] if "fold" in recipe.split else []
    else:
        data, model = choice if group == "data" else "synthetic", choice
    words += ["model=small_transfer"] if choice == "lbfgs" else []  # it is for a linear head
    words += [*data_of(data, drawn), *([f"data.size={SIDES[model]}"] if model in SIDES else [])]
    cfg = composed(*words, "model.weights=null", "data.batch_size=8", tmp_path=tmp_path)
    instantiate(cfg.trainer, accelerator="cpu", logger=False) if choice != "gpu" else None
    face_data = build_data(cfg)
    module = build_module(cfg, face_data, None)
    batch = next(iter(face_data.train_dataloader()))
    faces = face_data.prepare(batch, training=True)
    loss = module.task.loss(module.train()(faces), faces)
    loss.backward()
    optimizer = module.make_optimizer([weight for weight in module.net.parameters() if weight.requires_grad])
    optimizer.step(lambda: loss)
    if module.make_scheduler:
        assert module.make_scheduler(optimizer, epochs=2, steps_per_epoch=3)["scheduler"]
    assert torch.isfinite(loss)


@pytest.mark.long
@pytest.mark.parametrize("recipe", [choice for group, choice in CHOICES if group == "recipe"])
def test_every_recipe_trains_on_drawn_faces_and_has_its_anchor_row(recipe, tmp_path, drawn, monkeypatch):
    from fer_lab import anchors, ours
    from fer_lab.tracking.forward import settle
    from fer_lab.train import train

    monkeypatch.setattr(ours, "RESULTS", tmp_path / "anchors.json")
    chosen = composed(f"recipe={recipe}", tmp_path=tmp_path).hydra.runtime.choices
    words = data_of(str(chosen.data), drawn)
    if recipe.startswith("r1_"):
        words.remove("data.size=48")  # their nets are of one side
    cfg = composed(
        f"recipe={recipe}", "trainer=smoke", "trainer.max_epochs=1", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "threads=1", "model.weights=null", f"runs_dir={tmp_path}/runs",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", *words, tmp_path=tmp_path,
    )  # fmt: skip
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(plain, False)
    run = train(plain).run
    settle()
    (recorded,) = ours.record([tmp_path / "runs" / run])
    assert (recorded.recipe, recorded.drawn) == (recipe, True)
    answered = [one for one in anchors.anchors() if one.is_score and recipe in anchors.candidates(one)]
    told = [row[5] for row in anchors.rows(ours.recorded()) if f"({recipe}" in row[5]]
    assert all("NOT COMPARABLE: drawn faces" in text for text in told)
    assert bool(told) == bool(answered)


def test_a_yaml_may_name_nothing_outside_the_project():
    ours = ("fer_lab.", "torch.optim.", "pytorch_lightning.Trainer", "hydra_plugins.fer_lab_sweeper.")
    for path in (*CONF.rglob("*.yaml"), *(CONF.parent / "sweeps").glob("*.yaml")):
        for target in targets(OmegaConf.to_container(OmegaConf.load(path))):
            assert target.startswith(ours), (path, target)
    for bad in ("os.system", "fer_lab.cli.os.system", "fer_lab.data.faces.hashlib.sha256", "builtins.eval"):
        with pytest.raises(UsageError, match=r"is not part of fer_lab|cannot be loaded"):
            instantiate({"inner": [{"_target_": bad, "command": "true"}]})


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "data"])
def test_a_run_can_be_judged_on_any_data_set(choice):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for words in ([f"data={choice}"], [f"data={choice}", "split=kfold"]):
            assert hydra.compose("evaluate", overrides=["run=x", *words]).data.source


def test_yamls_are_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in CONF.rglob("*.yaml"))
    assert lengths[len(lengths) // 2] <= 12
