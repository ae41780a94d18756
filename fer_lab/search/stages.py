"""From search to confirmation to the final judgement: each kind of jobs is made when the one before is finished.

Whoever is idle calls `advance`; calling it twice changes nothing, so a sweep needs no controller to go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from fer_lab.search.confirm import ablation_jobs, confirm_jobs, verdict, with_seed
from fer_lab.search.ledger import ended, running, trials_of, unfinished
from fer_lab.search.limits import Enough, enough
from fer_lab.search.space.grammar import same
from fer_lab.search.sweep import Sweep

Studies = Mapping[str, Study]


def advance(sweep: Sweep, studies: Studies) -> None:
    """Makes the next jobs, or says in the study's `over` why there are none."""
    trials = studies["trials"]
    if not trials.user_attrs.get("open") or trials.user_attrs.get("over"):
        return
    has_enough = enough(trials, sweep.options, sweep.directions[0])
    if has_enough is None or is_busy(studies, has_enough):
        return
    if has_enough.kind not in ("stop", "broken"):
        for job, wanted in (("confirm", to_confirm), ("ablation", to_ablate), ("final", to_judge)):
            if ask_for(studies[job], wanted(sweep, studies)):
                return
    trials.set_user_attr("over", has_enough.why)


def is_busy(studies: Studies, has_enough: Enough) -> bool:
    """Whether jobs are under way; those that wait do not count once the sweep is stopped, and those that nobody has
    begun not behind a limit."""
    if has_enough.kind in ("stop", "broken"):
        return any(running(study) for study in studies.values())
    left = [trial for study in studies.values() for trial in unfinished(study)]
    limited = has_enough.kind == "limit"
    return any(
        not limited
        or trial.state.name == "RUNNING"
        or "continues" in trial.user_attrs
        or "job" in trial.user_attrs
        for trial in left
    )


def is_over(studies: Studies) -> bool:
    trials = studies["trials"].user_attrs
    return bool(trials.get("over") or trials.get("stop") or trials.get("broken"))


def ask_for(study: Study, jobs: list[dict[str, Any]]) -> bool:
    """Queues the jobs that the study does not know yet; whether there were any."""
    known = {trial.user_attrs.get("job") for trial in trials_of(study)}
    missing = [job for job in jobs if key_of(job) not in known]
    for job in missing:
        study.enqueue_trial({}, user_attrs={**job, "job": key_of(job)})
    return bool(missing)


def key_of(job: Mapping[str, Any]) -> str:
    return json.dumps(job, sort_keys=True)


def to_confirm(sweep: Sweep, studies: Studies) -> list[dict[str, Any]]:
    plan = sweep.options.confirm
    if not plan or sweep.multi_objective:
        return []
    return confirm_jobs(studies["trials"], plan.top, plan.seeds, first_seed(sweep))


def first_seed(sweep: Sweep) -> int:
    """The last seed that the search itself used; confirmation starts behind it."""
    return int(sweep.config.seed) + int(sweep.options.seeds) - 1


def winner_of(sweep: Sweep, studies: Studies) -> FrozenTrial | None:
    """The trial whose configuration is confirmed best; without confirmation the best of the search."""
    if sweep.multi_objective:
        return None
    searched = studies["trials"].get_trials(deepcopy=False)
    found = verdict(confirmed(sweep, studies), studies["trials"])
    if found is not None:
        return searched[found.winner.number]
    complete = [trial for trial in ended(studies["trials"]) if trial.state.name == "COMPLETE"]
    sign = 1 if sweep.directions[0] == "maximize" else -1
    return max(complete, key=lambda trial: sign * trial.values[0], default=None)


def confirmed(sweep: Sweep, studies: Studies) -> list[FrozenTrial]:
    """The jobs of the present top only: a search that went on may have another one than before."""
    wanted = {key_of(job) for job in to_confirm(sweep, studies)}
    return [trial for trial in ended(studies["confirm"]) if trial.user_attrs.get("job") in wanted]


def to_ablate(sweep: Sweep, studies: Studies) -> list[dict[str, Any]]:
    winner = winner_of(sweep, studies)
    if not sweep.options.ablate or winner is None:
        return []
    space = sweep.space
    names = {one.name: one for one in space.parameters}
    when = {one.key: [key for key, _ in one.when] for one in space.parameters}
    unchanged = [
        names[name].key
        for name, value in winner.params.items()
        if same(space.base.get(names[name].key), value)
    ]
    return ablation_jobs(winner, when, unchanged, sweep.options.ablate, first_seed(sweep))


def to_judge(sweep: Sweep, studies: Studies) -> list[dict[str, Any]]:
    """The winner's run of the best validation score; the test faces have had no part in any of this."""
    winner = winner_of(sweep, studies)
    if winner is None:
        return []
    words = list(winner.user_attrs["overrides"])
    runs = [trial for trial in confirmed(sweep, studies) if trial.user_attrs["of"] == winner.number]
    sign = 1 if sweep.directions[0] == "maximize" else -1
    complete = [trial for trial in runs if trial.state.name == "COMPLETE"]
    if complete:
        best = max(complete, key=lambda trial: sign * trial.values[0])
        words = with_seed(words, best.user_attrs["seed"])
    job: dict[str, Any] = {"of": winner.number, "overrides": words}
    session = studies["trials"].user_attrs.get("session", 0)  # when the command was given
    before = [
        trial
        for trial in ended(studies["final"])
        if trial.user_attrs.get("overrides") == words
        and (trial.datetime_start or datetime.now()).timestamp() < session
    ]
    if before and not any(trial.user_attrs.get("result", {}).get("registered") for trial in before):
        job["again"] = session  # the tracking store was down, or the worker died of it
    return [job]
