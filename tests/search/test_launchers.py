"""The same worker through Hydra's launchers: processes of joblib, submitit's jobs, a SLURM array, Ray."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from fer_lab.search.crew import Crew, present
from fer_lab.search.errors import SearchFailed
from tests.search.conftest import SPACE, wait_for

WHOLE = ("hydra.sweeper.pruner=none", "hydra.sweeper.heartbeat=0.5")


def states(trials) -> Counter[str]:
    return Counter(trial.user_attrs.get("state", trial.state.name) for trial in trials)


def trained_once(place, runs: int) -> None:
    """Every run has each of its three epochs once, in order, whoever trained them."""
    epochs: dict[str, list[int]] = {}
    for epoch in place.epochs:
        epochs.setdefault(epoch["run"], []).append(epoch["epoch"])
    assert list(epochs.values()) == [[1, 2, 3]] * runs


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_workers_of_a_launcher_make_exactly_the_total(place, launcher):
    pytest.importorskip(
        f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason=f"{launcher} is not installed"
    )
    words = (f"hydra/launcher={launcher}", "hydra.sweeper.n_trials=7", "hydra.sweeper.workers=2", *WHOLE)
    files = set(Path.cwd().iterdir())
    done = place.sweep(*words, TOY_EPOCH_SECONDS="0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(place.trials) == {"complete": 7}
    assert len({tuple(trial.params.items()) for trial in place.trials}) == 7, "workers proposed the same"
    assert len({epoch["pid"] for epoch in place.epochs}) == 2
    trained_once(place, 7)
    assert set(Path.cwd().iterdir()) == files, "something was left in the working folder"


def test_a_killed_job_is_survived_by_the_others(place):
    words = ("hydra/launcher=submitit_local", "hydra.sweeper.n_trials=4", "hydra.sweeper.workers=2", *WHOLE)
    running = place.start(*words, TOY_EPOCH_SECONDS="0.7")
    wait_for(lambda: len({epoch["pid"] for epoch in place.epochs}) == 2)
    victim = place.epochs[0]
    os.kill(victim["pid"], signal.SIGKILL)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 0, out
    assert states(place.trials) == {"complete": 4}
    trained_once(place, 4)
    (heir,) = (trial for trial in place.trials if "continues" in trial.user_attrs)
    assert heir.user_attrs["run"] == victim["run"]


def test_a_launch_that_failed_goes_on_while_any_worker_lives(tmp_path):
    """One job that failed is all that submitit tells; what the others do shows here or, from afar, in the trials."""
    options = OmegaConf.create({"workers": 2, "heartbeat": 0.05})
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": "a.launcher"}}})
    crew = Crew(SimpleNamespace(options=options, config=config, folder=tmp_path))
    crew.thread, crew.failure = threading.Thread(), RuntimeError("job 0 was killed")
    study = optuna.create_study()
    studies = {"trials": study}
    with present(tmp_path):
        crew.mend(studies)
    trial = study.ask()
    for beat in range(3):
        trial.set_user_attr("beat", beat)
        time.sleep(0.2)  # a little less than six beats
        crew.mend(studies)
    time.sleep(0.4)
    with pytest.raises(SearchFailed, match="job 0 was killed"):
        crew.mend(studies)


def test_ctrl_c_leaves_the_jobs_of_a_launcher_at_work(place):
    words = ("hydra/launcher=submitit_local", "hydra.sweeper.n_trials=4", "hydra.sweeper.workers=1", *WHOLE)
    running = place.start(*words, TOY_EPOCH_SECONDS="0.4")
    wait_for(lambda: place.epochs)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "the launcher's jobs go on by themselves" in out
    again = place.sweep(*words, TOY_EPOCH_SECONDS="0.4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len({epoch["pid"] for epoch in place.epochs}) == 1, (
        "more jobs were launched though one was at work"
    )
    trained_once(place, 4)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a pretended SLURM whose commands are on PATH."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="submitit is not installed")
    folder, commands = tmp_path / "slurm", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        script = commands / name
        script.write_text(
            f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("slurm.py")} {name} "$@"\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    yield folder
    for runner in (folder / "runners").read_text().split() if (folder / "runners").exists() else ():
        with suppress(ProcessLookupError):
            os.killpg(int(runner), signal.SIGKILL)


def test_an_array_of_slurm_jobs_needs_no_controller(place, slurm):
    """Its controller is killed before the first job starts, two jobs are ended by SLURM, two more finish the sweep."""
    words = (
        "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", "hydra.launcher.array_parallelism=2",
        "hydra.sweeper.workers=4", "hydra.sweeper.n_trials=5", "hydra.sweeper.confirm={top: 1, seeds: 2}", *WHOLE,
    )  # fmt: skip
    space = tuple(word for word in SPACE if "confirm" not in word)
    running = place.start(*words, space=space, TOY_EPOCH_SECONDS="0.4")
    wait_for(lambda: (slurm / "runners").exists())
    time.sleep(0.5)  # submitit moves its files after sbatch has answered
    running.kill()
    running.wait()
    assert not place.epochs
    (slurm / "go").touch()

    wait_for(lambda: len({epoch["pid"] for epoch in place.epochs}) == 2)
    first, second = {epoch["pid"] for epoch in place.epochs}
    os.kill(first, signal.SIGUSR2)  # the wall time is near
    os.kill(second, signal.SIGTERM)  # preempted
    wait_for(lambda: len(list(slurm.glob("12_*"))) == 4)
    assert {epoch["pid"] for epoch in place.epochs} > {first, second}
    assert not (slurm / "requeued").exists()
    assert states(place.trials) == {"complete": 5}
    assert {trial.state for trial in place.trials_of("/confirm")} == {TrialState.COMPLETE}
    trained_once(place, 7)
    assert not (place.folder / "report.md").exists()

    again = place.sweep(*words, space=space)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "seeds" in (place.folder / "report.md").read_text()
    trained_once(place, 7)
    (script,) = slurm.glob("*.sh")
    lines = script.read_text().splitlines()
    for line in ("--array=0-3%2", "--time=60", "--signal=USR2@120", "--nodes=1", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in lines, lines
    (command,) = (line for line in lines if line.startswith("srun"))
    assert "submitit.core._submit" in command and str(place.folder) in command


def test_a_space_that_does_not_compose_is_not_submitted(place, slurm):
    done = place.sweep("hydra/launcher=submitit_slurm", "optimizer.momentun=choice(0.5,0.9)")
    assert done.returncode == 2 and "momentun" in done.stderr
    assert not list(slurm.glob("*.sh"))


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a SLURM here")
def test_a_launcher_that_cannot_launch_is_told_at_once(place):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="submitit is not installed")
    done = place.sweep("hydra/launcher=submitit_slurm")
    assert done.returncode == 1 and "Could not detect" in done.stderr and "Traceback" not in done.stderr


def test_workers_leave_before_the_wall_time(place):
    """As in a SLURM job that holds the whole sweep."""
    end = time.time() + 9
    words = ("hydra.sweeper.n_trials=50", "hydra.sweeper.workers=2", *WHOLE)
    done = place.sweep(*words, TOY_EPOCH_SECONDS="0.5", SLURM_JOB_END_TIME=str(end))
    assert done.returncode == 1 and "their time was over" in done.stderr, done.stdout + done.stderr
    assert max(epoch["time"] for epoch in place.epochs) < end
    left = [trial.state for trial in place.trials]
    assert TrialState.RUNNING not in left and TrialState.WAITING in left
    ended = left.count(TrialState.COMPLETE)
    again = place.sweep(*words, f"hydra.sweeper.n_trials={ended + 2}")
    assert again.returncode == 0, again.stdout + again.stderr
    trained_once(place, ended + 2)


def test_lightning_does_not_requeue_slurm_jobs(monkeypatch):
    """The run is continued, not the job; and a trial is one process whatever SLURM says."""
    from fer_lab.fit import surroundings

    for name, value in {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "batch"}.items():
        monkeypatch.setenv(name, value)
    (cluster,) = surroundings(is_trial=False)
    assert type(cluster).__name__ == "SLURMEnvironment" and not cluster.auto_requeue
    (alone,) = surroundings(is_trial=True)
    assert alone.world_size() == 1
