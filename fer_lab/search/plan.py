"""Before the first trial: does every choice compose and make a step, what will it cost, what is known already."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study, create_trial
from optuna.trial import FrozenTrial

from fer_lab.search.crew import Crew
from fer_lab.search.errors import SearchError
from fer_lab.search.ledger import ended, trials_of, unfinished
from fer_lab.search.preflight import Plan, Probe, composition_faults, duration, estimate, fit
from fer_lab.search.samplers import check_space
from fer_lab.search.space.grammar import near
from fer_lab.search.stages import Studies, ask_for, key_of
from fer_lab.search.sweep import Sweep

REDUCTION = 3
COSTS = ("cost/parameters", "cost/seconds")
COMPOSING = ("ConfigCompositionException", "MissingConfigException", "ConfigAttributeError", "ConfigKeyError")


def check(sweep: Sweep, studies: Studies, crew: Crew) -> None:
    """Composes every choice here while the workers start, lets them step through the extremes, and raises SearchError
    with everything that is wrong. A launcher is asked for workers only if all composes."""
    jobs: list[dict[str, Any]] = [
        {"overrides": list(words)} for words in sweep.space.extremes(list(sweep.options.extremes))
    ]
    study = studies["preflight"]
    again = {
        trial.user_attrs.get("job") for trial in ended(study) if trial.user_attrs.get("state") == "failed"
    }
    for number, job in enumerate(jobs):
        if key_of(job) in again:  # what was wrong may have been put right
            jobs[number] = {**job, "at": time.time()}
    ask_for(study, jobs)
    faults = [*sweep.space.faults]
    try:
        check_space(sweep.options.sampler, {one.name: one.distribution for one in sweep.space.parameters})
    except SearchError as fault:
        faults.append(str(fault))
    faults += composition_faults(sweep.compose, sweep.space)
    if not faults:
        studies["trials"].set_user_attr("checked", crew.size)
    elif not crew.launched:  # what composes must not hide what is wrong with all of them
        jobs.append({"overrides": [], "at": time.time()})
        ask_for(study, jobs[-1:])
    while unfinished(study) and not (faults and crew.launched):
        crew.mend(studies)
        time.sleep(0.1)
    for trial in failed_steps(study, [job["overrides"] for job in jobs]):
        words, error = " ".join(trial.user_attrs["overrides"]), trial.user_attrs["error"]
        if not faults or not error.startswith(COMPOSING):  # those are told above, in better words
            faults.append(f"{words or 'with the defaults'}: {error}")
    faults += unknown_objectives(sweep, study)
    if faults:
        raise SearchError("\n".join(dict.fromkeys(faults)))


def unknown_objectives(sweep: Sweep, study: Study) -> list[str]:
    """Of several objectives, those that no run has; a single one is the monitor, which the step itself checks."""
    results = [trial.user_attrs["result"] for trial in ended(study) if "result" in trial.user_attrs]
    if not results or not sweep.multi_objective:
        return []
    known = [*results[-1]["logged"], *COSTS]
    return [
        f"objectives: {metric} is no number of a run{near(metric, known)}; choices: {', '.join(known)}"
        for metric in sweep.objectives
        if metric not in known
    ]


def failed_steps(study: Study, steps: Iterable[Sequence[str]]) -> list[FrozenTrial]:
    """Those of these words whose latest step failed."""
    latest = {tuple(trial.user_attrs["overrides"]): trial for trial in ended(study)}
    found = [latest[words] for words in map(tuple, steps) if words in latest]
    return [trial for trial in found if trial.user_attrs.get("state") == "failed"]


def open_alone(sweep: Sweep, studies: Studies) -> bool:
    """For idle workers without a controller: opens the sweep that it had checked. Whether there is one to wait for.

    Of jobs in a queue the first may start hours after their controller is gone.
    """
    study, trials = studies["preflight"], studies["trials"]
    if not trials.user_attrs.get("checked"):
        return False
    if unfinished(study):
        return True
    if failed_steps(study, sweep.space.extremes(list(sweep.options.extremes))):
        trials.set_user_attr("stop", "a step before the first trial failed")
        return False
    if not trials.user_attrs.get("open"):
        print(make_plan(sweep, studies, trials.user_attrs["checked"]), flush=True)
        trials.set_user_attr("open", True)
    return True


def follow_space(sweep: Sweep, studies: Studies) -> dict[str, Study]:
    """The studies to go on with. Optuna allows no other choices in a study, so a changed space gets a new one, and every
    trial of all earlier ones that is a configuration of the new space comes along."""
    latest, facts = studies["trials"], sweep.space.facts()
    known = latest.user_attrs.get("space")
    if known is None:
        return dict(studies)
    if changed := differences(sweep, known, facts):
        raise SearchError(
            f"sweep {sweep.name} was made with other settings, so its trials cannot be compared with new ones: "
            f"{'; '.join(changed)}. Give this sweep another hydra.sweeper.name, or take them back"
        )
    if known["parameters"] != facts["parameters"]:
        revision = f"{sweep.name}#{int(latest.study_name.partition('#')[2] or 1) + 1}"
        latest.set_user_attr("stop", "its space was changed")
        latest.set_user_attr("replaced_by", sweep.opened(revision).study_name)
    found = sweep.studies()
    carry_over(sweep, found["trials"])
    return found


def carry_over(sweep: Sweep, study: Study) -> None:
    """Adds what earlier spaces know and this one does not have yet; their workers may have ended trials since."""
    have = [trial.user_attrs.get("carried_from") for trial in study.get_trials(deepcopy=False)]
    name, count, fitting = sweep.name, 0, 0
    while name != study.study_name:
        earlier = sweep.opened(name)
        for trial in ended(earlier):
            if trial.state.name not in ("COMPLETE", "PRUNED") or "carried_from" in trial.user_attrs:
                continue
            count += 1
            params = sweep.space.carry_over(trial, earlier.user_attrs["space"])
            origin = [name, trial.number]
            if params is not None:
                fitting += 1
                if origin not in have:
                    study.add_trial(carried(sweep, trial, params, origin))
        name = earlier.user_attrs["replaced_by"]
    if count:
        print(
            f"the space has changed: {fitting} of {count} trials belong to the new one as well and count in it"
        )


def differences(sweep: Sweep, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that neither space sweeps and that are not the same any more."""
    swept = {one["key"] for facts in (before, now) for one in facts["parameters"]}
    groups = {key for key in swept if key in sweep.space.groups}
    keys = {key for key in before["base"].keys() | now["base"].keys() if key.partition(".")[0] not in groups}
    return [
        f"{key} was {before['base'].get(key)}, is {now['base'].get(key)}"
        for key in sorted(keys - swept)
        if before["base"].get(key) != now["base"].get(key)
    ]


def carried(sweep: Sweep, trial: FrozenTrial, params: Mapping[str, Any], origin: list[Any]) -> FrozenTrial:
    ranges = {one.name: one.distribution for one in sweep.space.parameters}
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=dict(params),
        distributions={name: ranges[name] for name in params},
        user_attrs={**trial.user_attrs, "overrides": sweep.space.words(params), "carried_from": origin},
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )


def keep_points(sweep: Sweep, study: Study) -> None:
    """Queues the known settings that no trial has yet, as far as the total goes."""
    for point in sweep.space.points:
        if len(trials_of(study)) >= study.user_attrs["n_trials"]:
            return
        study.enqueue_trial(point, skip_if_exists=True)


def make_plan(sweep: Sweep, studies: Studies, workers: int) -> Plan | str:
    """What the sweep will take, from the steps of the pre-flight; with `fit`, its n_trials and its first rung."""
    options, trials = sweep.options, studies["trials"]
    probes = [probe_of(trial) for trial in ended(studies["preflight"])]
    confirm = options.confirm
    runs = confirm.top * confirm.seeds if confirm and not sweep.multi_objective else 0
    pruner = sweep.pruner(trials)
    first = getattr(pruner, "_min_resource", None)
    workers = max(1, workers)
    if not [probe for probe in probes if not probe.error]:
        return "nothing could be measured before the first trial; no estimate"
    if options.fit is None:
        plan = estimate(probes, trials.user_attrs["n_trials"], workers, first, REDUCTION, runs)
    else:
        plan = fit(probes, duration(options.fit), workers, REDUCTION, runs)
        trials.set_user_attr("n_trials", min(plan.n_trials, sweep.space.size or plan.n_trials))
        prunes = plan.min_resource < sweep.max_epochs
        trials.set_user_attr(
            "pruner", {"name": "halving", "min_resource": plan.min_resource} if prunes else "none"
        )
    trials.set_user_attr("estimate", str(plan))
    memory = max(probe.memory_bytes for probe in probes)
    print(f"{workers} workers; a trial takes up to {memory / 2**30:.1f} GiB{too_much(memory * workers)}")
    return plan


def too_much(needed: int) -> str:
    """A warning where the workers together want more memory than this machine has to give."""
    facts = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", facts.read_text()) if facts.exists() else None
    free = 1024 * int(found[1]) if found else needed
    if needed <= free:
        return ""
    return f", more than the {free / 2**30:.1f} GiB here: take hydra.sweeper.workers=1, or a smaller batch"


def probe_of(trial: FrozenTrial) -> Probe:
    words = tuple(trial.user_attrs.get("overrides", ()))
    found = trial.user_attrs.get("result")
    if found is None:
        return Probe(words, 0.0, 0.0, 0, 0, str(trial.user_attrs.get("error", "no result")))
    return Probe(
        words, found["seconds_per_epoch"], found["once_seconds"], found["memory_bytes"], found["epochs"]
    )
