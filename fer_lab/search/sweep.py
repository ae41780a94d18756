"""What a sweep is: its space, its options, its folder and its studies. Controller and workers read it alike."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import optuna
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fer_lab.search.errors import SearchError
from fer_lab.search.preflight import duration
from fer_lab.search.space.space import Space

if TYPE_CHECKING:
    from fer_lab.search.host import Host

Direction = Literal["maximize", "minimize"]
JOBS = ("preflight", "trials", "confirm", "ablation", "final")
"""The kinds of work, in order; each is an Optuna study of its own in the sweep's storage."""

GRIDS = ("grid", "bruteforce")
DEFAULT_TRIALS = 20
ROLES = ("controller", "worker", "status", "stop", "report", "rerun", "check")


@dataclass
class Sweep:
    """`config` is the composed config of the fixed `words`, hydra node included; `directions` are Optuna's."""

    context: HydraContext
    config: DictConfig
    words: tuple[str, ...]
    space: Space
    name: str
    folder: Path
    flags: tuple[str, ...] = ()
    """--config-dir, where the space is not one of the project's."""
    composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, context: HydraContext, config: DictConfig, words: Sequence[str]) -> Sweep:
        """From the composed config and the words of the command line; raises SearchError."""
        options = config.hydra.sweeper
        space = Space.look(OmegaConf.to_container(options), words, config)  # type: ignore[arg-type]
        choice = config.hydra.runtime.choices.sweeps
        settings = json.dumps(space.base, sort_keys=True, default=str)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        name = options.name or f"{'sweep' if choice == 'none' else choice}-{digest}"
        given = [
            source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"
        ]
        flags = ("--config-dir", given[0]) if given else ()
        sweep = cls(context, config, tuple(space.fixed), space, name, Path(config.runs_dir) / name, flags)
        faults = sweep.wrong_options()
        if faults or not space.parameters:
            raise SearchError("\n".join([*faults, *space.faults]))
        return sweep

    @property
    def options(self) -> DictConfig:
        return self.config.hydra.sweeper

    @property
    def objectives(self) -> dict[str, str]:
        """{metric: max or min}; one is the monitor of every run, several are compared without pruning."""
        if self.options.objectives:
            return dict(self.options.objectives)
        return {str(self.config.monitor): str(self.config.mode)}

    @property
    def directions(self) -> list[Direction]:
        return ["maximize" if mode == "max" else "minimize" for mode in self.objectives.values()]

    @property
    def multi_objective(self) -> bool:
        return len(self.objectives) > 1

    @property
    def n_trials(self) -> int:
        """The total asked for; a grid is tried whole unless told otherwise."""
        whole = self.space.size if self.options.sampler in GRIDS else None
        wanted = self.options.n_trials or whole or DEFAULT_TRIALS
        return min(wanted, whole or wanted)

    @property
    def max_epochs(self) -> int:
        return int(self.config.trainer.max_epochs)

    @cached_property
    def host(self) -> Host:
        from hydra.utils import get_class

        return get_class(self.options.host)()

    @cached_property
    def storage(self) -> optuna.storages.BaseStorage:
        from fer_lab.search.stores import open_storage

        return open_storage(self.options.storage, self.folder)

    def studies(self) -> dict[str, optuna.Study]:
        """One for each kind of job; those of the latest space, where the space was changed."""
        name, trials = self.name, self.opened(self.name)
        while after := trials.user_attrs.get("replaced_by"):
            name, trials = after, self.opened(after)
        return {job: trials if job == "trials" else self.opened(f"{name}/{job}") for job in JOBS}

    def opened(self, name: str) -> optuna.Study:
        """Made where it is new. Workers give it a sampler and a pruner for each trial."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.create_study(
            study_name=name, storage=self.storage, directions=self.directions, load_if_exists=True
        )

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """For one trial; TPE draws at random until a quarter of the trials is there, ten at most."""
        from fer_lab.search.samplers import make_sampler

        choice = self.options.sampler
        if choice == "tpe":
            choice = {"name": "tpe", "n_startup_trials": max(1, min(10, self.n_trials // 4))}
        return make_sampler(choice, self.options.seed, self.multi_objective, number)

    def pruner(self, study: optuna.Study) -> optuna.pruners.BasePruner:
        """As the options say; `fit` may have found a first rung for it."""
        from fer_lab.search.samplers import make_pruner

        choice = study.user_attrs.get("pruner") or self.options.pruner
        return make_pruner("none" if self.multi_objective else choice, self.max_epochs)

    def compose(self, words: Sequence[str]) -> DictConfig:
        """The config of one trial, hydra node included: what Hydra composes of the fixed words and these.

        Groups are composed once for each choice; values are set on a copy, as Hydra itself does it last. That takes 5 ms
        in place of 85.
        """
        groups = tuple(word for word in words if word.partition("=")[0] in self.space.groups)
        if groups not in self.composed:
            loader = self.context.config_loader
            self.composed[groups] = loader.load_sweep_config(self.config, [*self.words, *groups])
        config = copy.deepcopy(self.composed[groups])
        values = [word for word in words if word not in groups]
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
        with open_dict(config):
            config.hydra.overrides.task = [*self.words, *words]
        return config

    def wrong_options(self) -> list[str]:
        """Everything about hydra.sweeper that can be known now."""
        faults = [
            fault for key, expected in EXPECTED.items() if (fault := expected.fault(key, self.options[key]))
        ]
        if not isinstance(self.config.trainer.max_epochs, int) or self.config.trainer.max_epochs < 1:
            faults.append(
                f"trainer.max_epochs={self.config.trainer.max_epochs}: a sweep needs a whole number from 1"
            )
        faults += [
            f"objectives: {metric}: {mode} is no direction; choices: max, min"
            for metric, mode in self.objectives.items()
            if mode not in ("max", "min")
        ]
        if self.options.objectives and not self.multi_objective:
            faults.append("objectives is for several; a single one is monitor=METRIC mode=max|min")
        if self.multi_objective and (self.options.target is not None or self.options.patience is not None):
            faults.append("target and patience need a single objective: of several none is the best")
        return [*faults, *self.wrong_choices(bool(faults))]

    def wrong_choices(self, others_wrong: bool) -> list[str]:
        """Names and lengths of time; what cannot be judged while `others_wrong` is left for the next time."""
        from fer_lab.search.samplers import make_pruner

        options, faults = self.options, []
        checks: dict[str, Callable[[], Any]] = {
            "sampler": lambda: self.sampler(0),
            "pruner": lambda: make_pruner(options.pruner, self.max_epochs),
            **{
                key: lambda key=key: duration(options[key])  # type: ignore[misc]
                for key in ("timeout", "fit", "wall_time")
                if options[key] is not None
            },
        }
        for key, check in checks.items():
            try:
                check()
            except SearchError as error:
                faults.append(f"hydra.sweeper.{key}: {error}")
            except (TypeError, ValueError):
                if not others_wrong:
                    raise
        return faults


class Expected(NamedTuple):
    """What an option may be: `fits` for anything but null."""

    what: str
    fits: Callable[[Any], bool]
    may_be_null: bool = False

    def fault(self, key: str, value: Any) -> str:
        if self.may_be_null if value is None else self.fits(value):
            return ""
        return f"hydra.sweeper.{key}={value}: expected {self.what}{' or null' if self.may_be_null else ''}"


def whole(least: int, may_be_null: bool = False) -> Expected:
    return Expected(
        f"a whole number from {least}", lambda value: is_whole(value) and value >= least, may_be_null
    )


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


def confirms(value: Any) -> bool:
    return isinstance(value, DictConfig) and all(
        is_whole(value.get(key)) and value[key] > 0 for key in ("top", "seeds")
    )


EXPECTED = {
    "role": Expected(f"one of {', '.join(ROLES)}", lambda value: value in ROLES),
    "name": Expected(
        "letters, digits and . _ = + -", lambda value: bool(re.fullmatch(r"\w[\w.=+-]*", str(value))), True
    ),
    "n_trials": whole(1, may_be_null=True),
    "workers": whole(0, may_be_null=True),
    "epochs": whole(1, may_be_null=True),
    "patience": whole(1, may_be_null=True),
    "keep": whole(0, may_be_null=True),
    "seed": whole(0),
    "seeds": whole(1),
    "retries": whole(0),
    "ablate": whole(0),
    "target": Expected("a number", is_number, True),
    "heartbeat": Expected("seconds", lambda value: is_number(value) and value > 0),
    "confirm": Expected("{top: 3, seeds: 5}", confirms, True),
    "storage": Expected("sqlite, journal or an address", lambda value: isinstance(value, str)),
    "extremes": Expected("a list of keys", lambda value: isinstance(value, ListConfig)),
}


def without_password(text: str) -> str:
    """Nothing that is written holds one: PGPASSWORD or ~/.pgpass give it to whoever joins."""
    text = re.sub(r"://([^:/@\s]*):[^@\s]*@", r"://\1@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1", text)
