"""One try at one trial: what is asked, trained and told, and what becomes of it when it goes wrong."""

from __future__ import annotations

import math
import shlex
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from fer_lab.search import ledger
from fer_lab.search.lines import record_trial
from fer_lab.search.sweep import GRIDS, without_password

if TYPE_CHECKING:
    from fer_lab.search.worker import Worker

IDLE_SECONDS = 0.2


class Interrupted(BaseException):
    """The worker has to leave, or lost its trial: the run keeps its checkpoint. No Exception, so that nothing catches it."""


class Lost(Interrupted):
    """Others took this worker for dead and go on with its trial."""


class Attempt:
    """One try at one trial; to the run it is the `Job` that it may ask."""

    def __init__(self, worker: Worker, job: str, trial: Trial) -> None:
        self.worker, self.sweep, self.job, self.trial = worker, worker.sweep, job, trial
        self.study = worker.studies[job]
        self.frozen = self.study.get_trials(deepcopy=False)[trial.number]
        self.parent = self.sweep.name
        label = "" if job == "trials" else f" {job}"
        self.name = f"{self.sweep.name}{label} {trial.number:04d}"
        self.known = set(self.frozen.intermediate_values)

    @property
    def tags(self) -> Mapping[str, str]:
        """With the command that trains this trial alone."""
        words = [*self.sweep.words, *self.frozen.user_attrs.get("overrides", [])]
        line = ["python", "-m", self.worker.module, *self.sweep.flags, "hydra.mode=RUN", *words]
        command = without_password(shlex.join(line))
        return {
            "fer.sweep": self.sweep.name, "fer.job": self.job, "fer.trial": str(self.trial.number),
            "command": command, "mlflow.source.name": command,
        }  # fmt: skip

    def run(self) -> None:
        """Never raises for what goes wrong in a trial; the worker leaves after an interruption."""
        try:
            overrides = self.overrides()
            if self.job == "trials" and self.copy_twin(overrides):
                return
            began = time.monotonic()
            outcome = self.train(overrides)
            self.worker.in_training = False
            self.conclude(outcome, round(time.monotonic() - began, 2))
        except Lost:
            print(f"{self.name}: declared lost meanwhile; somebody else goes on with it", flush=True)
        except Interrupted as interruption:
            self.hand_on(str(interruption))
        except (KeyboardInterrupt, SystemExit) as end:
            if self.worker.leaving:
                self.hand_on(self.worker.leaving)
            else:  # the trial itself wants to end the process
                self.fail(end)
        except UpdateFinishedTrialError:
            print(f"{self.name}: declared lost meanwhile; somebody else goes on with it", flush=True)
        except Exception as error:
            self.fail(error)
        finally:
            self.worker.in_training = False

    def hand_on(self, why: str) -> None:
        self.worker.in_training = False
        self.worker.leaving = self.worker.leaving or why
        frozen = self.sweep.storage.get_trial(self.trial._trial_id)
        if not frozen.state.is_finished():
            ledger.hand_on(self.study, frozen, "interrupted")

    def overrides(self) -> list[str]:
        """The words of this trial: those of an explicit job, else asked of the sampler."""
        explicit = self.frozen.user_attrs.get("overrides")
        if explicit is not None:
            return list(explicit)
        words = self.sweep.space.suggest(self.trial)
        self.trial.set_user_attr("overrides", words)
        self.frozen.user_attrs["overrides"] = words
        return words

    def copy_twin(self, words: list[str]) -> bool:
        """The value of the same configuration, trained before; waits for one that is being trained now."""
        if "continues" in self.frozen.user_attrs:
            return False
        frozen = self.sweep.storage.get_trial(self.trial._trial_id)
        twins = ledger.twins(self.study, frozen)
        if (
            twins and self.sweep.options.sampler in GRIDS
        ):  # two asked at once: the grid has another point for one of them
            ledger.close(self.study, frozen.number, "surplus")
            return True
        if len(twins) < self.sweep.options.seeds:
            if twins:
                words.append(f"seed={int(self.sweep.config.seed) + len(twins)}")
                self.trial.set_user_attr("overrides", words)
            return False
        while any(twin.state == TrialState.RUNNING for twin in twins):
            if self.worker.leaving:
                raise Interrupted(self.worker.leaving)
            self.worker.reap()
            time.sleep(IDLE_SECONDS)
            twins = ledger.twins(self.study, frozen)
        if len(twins) < self.sweep.options.seeds:  # it failed, or goes on elsewhere
            return False
        self.tell_like(twins)
        return True

    def tell_like(self, twins: list[FrozenTrial]) -> None:
        complete = [twin for twin in twins if twin.state == TrialState.COMPLETE]
        first = (complete or twins)[0]
        kept = {key: first.user_attrs[key] for key in ("state", "run", "metrics") if key in first.user_attrs}
        ledger.note(self.trial, **kept, same_as=first.number)
        if complete:
            values = [
                sum(column) / len(complete)
                for column in zip(*(twin.values for twin in complete), strict=True)
            ]
            self.tell(TrialState.COMPLETE, values)
            return
        for step, value in first.intermediate_values.items():
            self.trial.report(value, step)
        if first.user_attrs.get("state") != "pruned":
            self.trial.set_constraint(first.user_attrs["state"], 1.0)
        self.tell(TrialState.PRUNED)

    def train(self, words: list[str]) -> Any:
        """An Outcome; of a probe or the final judgement a dictionary."""
        host, config = self.sweep.host, self.sweep.compose(words)
        with as_hydra_job(config) as plain:
            if self.worker.leaving:
                raise Interrupted(self.worker.leaving)
            self.worker.in_training = True
            match self.job:
                case "preflight":
                    return host.probe(plain)
                case "final":
                    return host.final(plain, self.sweep.name)
                case _:
                    return host.trial(plain, self)

    def conclude(self, outcome: Any, seconds: float) -> None:
        if self.job in ("preflight", "final"):
            ledger.note(self.trial, result=outcome, state="complete", seconds=seconds)
            self.tell(TrialState.COMPLETE, [0.0] * len(self.sweep.directions))
            return
        facts = {"run": outcome.run, "epochs": outcome.epochs, "seconds": seconds, "metrics": outcome.metrics}
        if outcome.state == "pruned":
            ledger.note(self.trial, **facts, state="pruned")
            self.tell(TrialState.PRUNED)
            return
        values = self.values(outcome)
        if not all(math.isfinite(value) for value in values):
            ledger.note(self.trial, **facts, error=f"{self.sweep.objectives} is {values}")
            self.infeasible("diverged")
            return
        ledger.note(self.trial, **facts, state="complete")
        self.tell(TrialState.COMPLETE, values)

    def values(self, outcome: Any) -> list[float]:
        if not self.sweep.multi_objective:
            return [float(outcome.score)]
        return [float(outcome.metrics[metric]) for metric in self.sweep.objectives]

    def fail(self, error: BaseException) -> None:
        """Divergence and a full memory teach the sampler to stay away; anything else is a failure."""
        self.worker.in_training = False
        kind = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{kind} at {frames[-1].filename}:{frames[-1].lineno}" if frames else kind
        text = "".join(traceback.format_exception(error))
        facts = {"error": f"{kind}: {error}"[:2000], "traceback": text[-8000:], "where": where}
        print(f"{self.name}: {facts['error']}", flush=True)
        with suppress(UpdateFinishedTrialError):
            if kind == "Diverged":
                ledger.note(self.trial, error=facts["error"])
                self.infeasible("diverged")
            elif "OutOfMemory" in kind or "out of memory" in str(error).lower():
                ledger.note(self.trial, error=facts["error"])
                self.infeasible("out_of_memory")
            else:
                ledger.note(self.trial, **facts, state="failed")
                self.tell(TrialState.FAIL)

    def infeasible(self, state: str) -> None:
        self.trial.set_user_attr("state", state)
        if self.job == "trials":
            self.trial.set_constraint(state, 1.0)
            self.tell(TrialState.PRUNED)
        else:
            self.tell(TrialState.FAIL)

    def tell(self, state: TrialState, values: list[float] | None = None) -> None:
        self.study.tell(self.trial, values, state)
        record_trial(self.sweep.folder, self.study, self.sweep.storage.get_trial(self.trial._trial_id))

    def report(self, epochs: int, score: float) -> bool:
        """See host.Job."""
        if self.worker.leaving:
            raise Interrupted(self.worker.leaving)
        facts = self.worker.studies["trials"].user_attrs
        if facts.get("stop") == "now" or facts.get("broken"):
            raise Interrupted("the sweep was stopped")
        if self.job != "trials" or self.sweep.multi_objective:
            return False
        self.worker.in_training = False  # a signal must not break into the store's transaction
        try:
            if epochs not in self.known:
                self.trial.report(score, epochs)
                self.known.add(epochs)
            pruned = self.trial.should_prune()
        except UpdateFinishedTrialError:
            raise Lost from None
        if self.worker.leaving:
            raise Interrupted(self.worker.leaving)
        self.worker.in_training = True
        return pruned

    def keeps(self, score: float) -> bool:
        """Runs of explicit jobs, and the best trials so far."""
        if self.job != "trials" or self.sweep.options.keep is None or self.sweep.multi_objective:
            return True
        sign = 1 if self.sweep.directions[0] == "maximize" else -1
        done = [trial for trial in ledger.ended(self.study) if trial.state == TrialState.COMPLETE]
        better = sum(sign * trial.values[0] > sign * score for trial in done)
        return better < self.sweep.options.keep


@contextmanager
def as_hydra_job(config: DictConfig) -> Iterator[DictConfig]:
    """What Hydra does around a job, without folders and log files: the run finds its HydraConfig, and no hydra node."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)
    try:
        yield OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    finally:
        hydra.cfg = before
