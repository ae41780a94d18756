"""Which settings to try next, and which trials to end early: Optuna's samplers and pruners by their names."""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy
from optuna import Study
from optuna import pruners as optuna_pruners
from optuna import samplers as optuna_samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fer_lab.search.errors import SearchError
from fer_lab.search.ledger import VOID

Options = dict[str, Any]


class Kind(NamedTuple):
    """One sampler or pruner: how it is made, and the type of each option that it takes."""

    build: Callable[[Any, Options], Any]
    options: dict[str, type]


class GridSampler(optuna_samplers.BruteForceSampler):
    """Every point once, conditions honoured. A study whose last point is told gets user_attr `exhausted`."""

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        try:
            super().after_trial(study, trial, state, values)
        except RuntimeError:  # it calls study.stop(), which works inside of Study.optimize alone
            study.set_user_attr("exhausted", True)

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        """Trials that were given back untrained do not take their point away."""
        tried = [trial for trial in trials if not trial.state.is_finished() or _was_tried(trial)]
        optuna_samplers.BruteForceSampler._populate_tree(tree, tried, params)


def _was_tried(trial: FrozenTrial) -> bool:
    return bool(trial.params) and trial.user_attrs.get("state") != "surplus"


class Seeds(NamedTuple):
    sweep: int  # the same for every trial
    trial: int


def _tpe(seeds: Seeds, options: Options) -> BaseSampler:
    grouped: Options = {"multivariate": True, "group": True, "constant_liar": True}
    return optuna_samplers.TPESampler(seed=seeds.trial, **grouped | options)


def _gp(seeds: Seeds, options: Options) -> BaseSampler:
    return optuna_samplers.GPSampler(seed=seeds.trial, warn_independent_sampling=False, **options)


def _qmc(seeds: Seeds, options: Options) -> BaseSampler:
    """One scrambled sequence for the whole sweep; keys under a condition are drawn anew for each trial."""
    return optuna_samplers.QMCSampler(
        seed=seeds.sweep,
        independent_sampler=optuna_samplers.RandomSampler(seed=seeds.trial),
        warn_independent_sampling=False,
        **Options(scramble=True) | options,
    )


def _cmaes(seeds: Seeds, options: Options) -> BaseSampler:
    return optuna_samplers.CmaEsSampler(seed=seeds.trial, warn_independent_sampling=False, **options)


def _nsgaii(seeds: Seeds, options: Options) -> BaseSampler:
    """Generations of 10: with Optuna's 50 a sweep of usual size would end within the first, which is random."""
    return optuna_samplers.NSGAIISampler(seed=seeds.trial, **Options(population_size=10) | options)


_GRID = Kind(lambda seeds, options: GridSampler(seed=seeds.trial, **options), {})
_SAMPLERS = {
    "tpe": Kind(
        _tpe,
        {
            "n_startup_trials": int,
            "n_ei_candidates": int,
            "multivariate": bool,
            "group": bool,
            "constant_liar": bool,
        },
    ),
    "gp": Kind(_gp, {"n_startup_trials": int, "deterministic_objective": bool}),
    "random": Kind(lambda seeds, options: optuna_samplers.RandomSampler(seed=seeds.trial, **options), {}),
    "qmc": Kind(_qmc, {"qmc_type": str, "scramble": bool}),
    "grid": _GRID,
    "bruteforce": _GRID,
    "cmaes": Kind(
        _cmaes,
        {
            "n_startup_trials": int,
            "popsize": int,
            "consider_pruned_trials": bool,
            "with_margin": bool,
            "use_separable_cma": bool,
            "lr_adapt": bool,
        },
    ),
    "nsgaii": Kind(
        _nsgaii,
        {"population_size": int, "mutation_prob": float, "crossover_prob": float, "swapping_prob": float},
    ),
}


class _Counting:
    """A study without the trials that others stand for; as much of it as successive halving looks at."""

    def __init__(self, study: Study) -> None:
        self.direction, self._storage, self._study = study.direction, study._storage, study

    def get_trials(self, deepcopy: bool = True) -> list[FrozenTrial]:
        return [
            trial for trial in self._study.get_trials(deepcopy) if trial.user_attrs.get("state") not in VOID
        ]


class HalvingPruner(optuna_pruners.SuccessiveHalvingPruner):
    """A trial that was interrupted and continued stands in each rung once."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return super().prune(cast(Study, _Counting(study)), trial)


class HyperbandPruner(optuna_pruners.HyperbandPruner):
    def _try_initialization(self, study: Study) -> None:
        super()._try_initialization(study)
        for pruner in self._pruners:
            pruner.__class__ = HalvingPruner


def _halving(max_epochs: int, options: Options) -> BasePruner:
    defaults = {"min_resource": max(1, max_epochs // 9), "reduction_factor": 3}
    return HalvingPruner(**defaults | options)


def _hyperband(max_epochs: int, options: Options) -> BasePruner:
    defaults = {"min_resource": max(1, max_epochs // 9), "reduction_factor": 3}
    return HyperbandPruner(max_resource=max_epochs, **defaults | options)


def _patient(max_epochs: int, options: Options) -> BasePruner:
    own = {"patience": 2} | {key: options.pop(key) for key in ("patience", "min_delta") if key in options}
    return optuna_pruners.PatientPruner(optuna_pruners.MedianPruner(**options), **own)


_RUNGS: dict[str, type] = {"min_resource": int, "reduction_factor": int, "bootstrap_count": int}
_STEPS: dict[str, type] = {"n_warmup_steps": int, "interval_steps": int}
_MEDIAN: dict[str, type] = {"n_startup_trials": int, "n_min_trials": int} | _STEPS
_PRUNERS = {
    "halving": Kind(_halving, _RUNGS | {"min_early_stopping_rate": int}),
    "hyperband": Kind(_hyperband, _RUNGS),
    "median": Kind(lambda max_epochs, options: optuna_pruners.MedianPruner(**options), _MEDIAN),
    "patient": Kind(_patient, _MEDIAN | {"patience": int, "min_delta": float}),
    "threshold": Kind(
        lambda max_epochs, options: optuna_pruners.ThresholdPruner(**options),
        {"lower": float, "upper": float} | _STEPS,
    ),
    "none": Kind(lambda max_epochs, options: optuna_pruners.NopPruner(), {}),
}

SAMPLERS = tuple(_SAMPLERS)
PRUNERS = tuple(_PRUNERS)


def make_sampler(
    choice: str | Mapping[str, Any], seed: int, multi_objective: bool, number: int = 0
) -> BaseSampler:
    """A sampler for one trial: `seed` is the sweep's, `number` the trial's own, so that workers which ask at the
    same time propose different settings. Raises SearchError for an unknown name or option."""
    name, options = _read(choice, _SAMPLERS, "sampler")
    if name == "cmaes" and multi_objective:
        raise SearchError(
            "sampler cmaes follows one objective: choose tpe, gp, nsgaii, qmc, random or grid for several"
        )
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SearchError("sampler cmaes needs the package cmaes: pip install 'fer_lab[cmaes]'")
    mixed = int(numpy.random.SeedSequence([seed, number]).generate_state(1)[0])
    return _build(f"sampler {name}", _SAMPLERS[name], Seeds(seed, mixed), options)


def make_pruner(choice: str | Mapping[str, Any] | None, max_epochs: int) -> BasePruner:
    """A pruner for trials that report after each of the epochs 1..max_epochs. Raises SearchError."""
    name, options = _read(choice or "none", _PRUNERS, "pruner")
    if options.get("min_resource", 1) > max_epochs:
        raise SearchError(
            f"pruner {name}: min_resource={options['min_resource']} is beyond max_epochs={max_epochs}, so nothing "
            f"would ever be pruned; take {max(1, max_epochs // 9)}, or pruner=none"
        )
    if name == "threshold" and not options.keys() & {"lower", "upper"}:
        raise SearchError("pruner threshold needs a bound: {name: threshold, lower: 0.3} (or upper)")
    return _build(f"pruner {name}", _PRUNERS[name], max_epochs, options)


def check_space(choice: str | Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
    """Raises SearchError, with every key at fault, if the sampler cannot search these ranges."""
    name, _ = _read(choice, _SAMPLERS, "sampler")
    if name in ("grid", "bruteforce"):
        endless = [
            f"{key}: interval({distribution.low:g},{distribution.high:g}) has no end of values; "
            f"write choice(…) or range({distribution.low:g},{distribution.high:g},STEP)"
            for key, distribution in distributions.items()
            if isinstance(distribution, FloatDistribution) and distribution.step is None
        ]
        if endless:
            raise SearchError(
                "\n".join([f"sampler {name} tries every value, so (or take sampler=tpe):", *endless])
            )
    numbers = [key for key, found in distributions.items() if not isinstance(found, CategoricalDistribution)]
    if name == "cmaes" and len(numbers) < 2:
        raise SearchError(
            f"sampler cmaes searches two or more numbers, and here is {', '.join(numbers) or 'none'}: take sampler=tpe"
        )


def _read(
    choice: str | Mapping[str, Any] | None, kinds: Mapping[str, Kind], what: str
) -> tuple[str, Options]:
    """The name and the checked options of `tpe` or `{name: tpe, n_startup_trials: 5}`."""
    options = {"name": choice} if isinstance(choice, str | None) else dict(choice)
    name = str(options.pop("name", None))
    if name not in kinds:
        raise SearchError(f"{what} {name!r} is unknown{_near(name, kinds)}; choose one of {', '.join(kinds)}")
    types = kinds[name].options
    faults = [
        f"{key}={value!r}: {fault}" for key, value in options.items() if (fault := _fault(key, value, types))
    ]
    if faults:
        raise SearchError("\n".join(f"{what} {name}: {fault}" for fault in faults))
    return name, options


def _fault(key: str, value: Any, types: Mapping[str, type]) -> str:
    if key not in types:
        return f"no such option{_near(key, types)}; it takes {', '.join(types) or 'none'}"
    wanted = types[key]
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if fits and not (isinstance(value, bool) and wanted is not bool):
        return ""
    return f"write a value of type {wanted.__name__}"


def _near(word: str, words: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _build(title: str, kind: Kind, context: Any, options: Options) -> Any:
    with _quiet():
        try:
            return kind.build(context, options)
        except (TypeError, ValueError) as error:
            raise SearchError(f"{title}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls grouping, brute force and patience experimental at each use; they are tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
