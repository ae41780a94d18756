"""Reading a sweep from the command line: its name, its options, and composing its trials."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import hydra
import pytest
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from fer_lab.cli import CONF, ROOT
from fer_lab.search.errors import SearchError
from fer_lab.search.sweep import Sweep

SPACES = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml") if path.stem != "none")


@contextmanager
def read(*words: str):
    sys.path.append(str(ROOT / "fer_lab/search/plugin"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("sweep", list(words), RunMode.MULTIRUN)
        yield Sweep.read(HydraContext(loader, Callbacks()), config, list(words))


@pytest.mark.parametrize("space", SPACES)
def test_a_trial_is_composed_as_hydra_would_compose_it(space):
    with read(f"sweeps={space}", "seed=3") as sweep:
        for words in sweep.space.combinations(limit=20)[:25]:
            ours = sweep.compose(words)
            theirs = sweep.context.config_loader.load_sweep_config(sweep.config, [*sweep.words, *words])
            theirs.hydra.job.override_dirname = (
                ours.hydra.job.override_dirname
            )  # names a folder that nobody makes
            assert ours == theirs, words


def test_the_same_settings_are_the_same_sweep_wherever_it_runs():
    with read("runs_dir=a", "tracking.uri=http://b:1", "hydra.sweeper.n_trials=3") as one:
        pass
    with read("runs_dir=b", "optimizer.lr=tag(log,interval(1e-3,1))", "hydra.sweeper.n_trials=9") as other:
        pass
    with read("trainer.max_epochs=9") as longer:
        pass
    assert one.name == other.name != longer.name
    assert one.name.startswith("quick-") and one.folder.name == one.name


def test_wrong_options_are_told_all_at_once():
    words = (
        "n_trials=0",
        "sampler=tpa",
        "pruner={name: median, n_warmup: 3}",
        "timeout=soon",
        "role=boss",
        "seeds=1.5",
    )
    with (
        pytest.raises(SearchError) as caught,
        read("sweeps=r1_newbase", *(f"hydra.sweeper.{word}" for word in words)),
    ):
        pass
    for part in ("n_trials=0", "tpe", "n_warmup_steps", "soon", "controller, worker", "seeds=1.5"):
        assert part in str(caught.value)


def test_a_single_objective_is_the_monitor_and_several_have_directions():
    with read("monitor=val/loss", "mode=min") as sweep:
        assert sweep.objectives == {"val/loss": "min"} and sweep.directions == ["minimize"]
    with read("hydra.sweeper.objectives={val/accuracy: max, cost/parameters: min}") as sweep:
        assert sweep.multi_objective and sweep.directions == ["maximize", "minimize"]
