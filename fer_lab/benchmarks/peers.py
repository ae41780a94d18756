"""python -m fer_lab.benchmarks.peers SETTINGS: one process of a search as one writes it with Optuna and Lightning.

`study.optimize` on a study in SQLite, images decoded once into memory, torchvision's transforms, a DataLoader, a
LightningModule, MLFlowLogger, one thread. Of fer_lab it takes the nets alone. It writes no checkpoints, so that it has
less to do than ours. SETTINGS is `Settings` as JSON; `place`/trials.jsonl gets a line for every trial that ends.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytorch_lightning as pl
import torch
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fer_lab.models.small import Small
from fer_lab.models.vgg import Vgg


class Settings(NamedTuple):
    """`work` is small or vgg19; `total` trials, of which this process does one if `one`; `prune` by the median."""

    work: str
    pictures: str
    place: str
    size: int
    epochs: int
    total: int
    one: bool
    prune: bool
    seed: int


class Pictures(Dataset[tuple[Tensor, int]]):
    """The folder of folders of one part, decoded: (1, size, size) uint8 and the class."""

    def __init__(self, folder: Path, size: int, transform: v2.Transform) -> None:
        samples = ImageFolder(str(folder)).samples
        self.images = [decoded(path, size) for path, _ in samples]
        self.labels = [label for _, label in samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.images[row]), self.labels[row]


def decoded(path: str, size: int) -> Tensor:
    return v2.functional.pil_to_tensor(Image.open(path).convert("L").resize((size, size)))


@cache
def parts(settings: Settings) -> tuple[Pictures, Pictures]:
    """Training and validation pictures, once for all trials of this process."""
    last: list[nn.Module] = [v2.ToDtype(torch.float32, scale=True)]
    varied: list[nn.Module] = [v2.RandomHorizontalFlip()]
    if settings.work == "small":
        varied.append(v2.RandomAffine(0, translate=(0.1, 0.1)))
    else:
        colour = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        last += [v2.Grayscale(num_output_channels=3), colour]
    root = Path(settings.pictures)
    return (
        Pictures(root / "train", settings.size, v2.Compose([*varied, *last])),
        Pictures(root / "validation", settings.size, v2.Compose(last)),
    )


class Standardized(nn.Module):
    """Each picture less its mean, over its deviation, then `net`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        return self.net((images - mean) / deviation.clamp_min(0.04))


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, optimizer: str, options: dict[str, float], one_cycle: bool) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer, self.options, self.one_cycle = optimizer, options, one_cycle

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self.net(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.log("val/loss", functional.cross_entropy(logits, labels))
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        kinds = {
            "sgd": torch.optim.SGD,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }
        learning = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = kinds[self.optimizer](learning, **self.options)
        if not self.one_cycle:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.options["lr"], total_steps=steps, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Reports(pl.Callback):
    """Tells the trial how each epoch went; `best` is the best accuracy so far."""

    def __init__(self, trial: Trial, prune: bool) -> None:
        self.trial, self.prune = trial, prune
        self.best, self.epochs, self.pruned = 0.0, 0, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.best, self.epochs = max(self.best, accuracy), trainer.current_epoch + 1
        if self.prune:
            self.trial.report(accuracy, self.epochs)
            self.pruned = trainer.should_stop = self.trial.should_prune()


def small(trial: Trial, size: int) -> tuple[Classifier, int]:
    """The space of `fer_lab.benchmarks.trials.SPACE`: the module and the batch size."""
    kind = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    options: dict[str, Any] = {"lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)}
    net = Small(classes=7, size=size, dropout=trial.suggest_float("dropout", 0.0, 0.5))
    batch_size = trial.suggest_categorical("batch_size", [32, 64, 128])
    options |= {
        "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "adamw": {"weight_decay": 0.01, "fused": True},
    }[kind]
    return Classifier(Standardized(net), kind, options, one_cycle=True), batch_size


def vgg19(trial: Trial, size: int) -> tuple[Classifier, int]:
    """The space of sweeps/r0_jaffe_vgg19.yaml, momentum for sgd alone."""
    kind = trial.suggest_categorical("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
    net = Vgg(depth=19, classes=7, size=size, dropout=trial.suggest_float("dropout", 0.0, 0.7))
    net.backbone.requires_grad_(False)
    batch_size = trial.suggest_categorical("batch_size", [8, 16, 32, 64])
    if kind == "sgd":
        options = {
            "lr": trial.suggest_float("lr_sgd", 1e-4, 0.3, log=True),
            "momentum": trial.suggest_float("momentum", 0.5, 0.99),
        }
    else:
        options = {"lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True)}
    return Classifier(net, kind, options, one_cycle=False), batch_size


def train(trial: Trial, settings: Settings) -> float:
    pl.seed_everything(settings.seed, verbose=False)
    module, batch_size = {"small": small, "vgg19": vgg19}[settings.work](trial, settings.size)
    training, validation = parts(settings)
    address = f"sqlite:///{settings.place}/mlflow.db"
    logger = MLFlowLogger("bench", f"trial {trial.number}", address)
    logger.log_hyperparams(trial.params)
    reports = Reports(trial, settings.prune)
    trainer = pl.Trainer(
        max_epochs=settings.epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[reports],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1000,
    )
    batches = DataLoader(training, batch_size, shuffle=True)
    trainer.fit(module, batches, DataLoader(validation, 2 * batch_size))
    trial.set_user_attr("epochs", reports.epochs)
    if reports.pruned and reports.epochs < settings.epochs:
        raise optuna.TrialPruned
    return reports.best


def search(settings: Settings) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    place = Path(settings.place)
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True)
    pruner = optuna.pruners.MedianPruner() if settings.prune else optuna.pruners.NopPruner()
    with FileLock(place / "study.lock"):  # two that make the tables at once would break
        study = optuna.create_study(
            storage=f"sqlite:///{place}/study.db", sampler=sampler, pruner=pruner, study_name="peer",
            direction="maximize", load_if_exists=True,
        )  # fmt: skip

    def note(_: optuna.Study, trial: FrozenTrial) -> None:
        assert trial.datetime_complete is not None
        facts = {
            "state": trial.state.name.lower(),
            "epochs": trial.user_attrs["epochs"],
            "ended": trial.datetime_complete.timestamp(),
        }
        with (place / "trials.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    enough = optuna.study.MaxTrialsCallback(settings.total, states=(TrialState.COMPLETE, TrialState.PRUNED))
    study.optimize(
        lambda trial: train(trial, settings), n_trials=1 if settings.one else None, callbacks=[note, enough]
    )


if __name__ == "__main__":
    search(Settings(**json.loads(sys.argv[1])))
