"""The job that trains a run on a cluster: its text, word for word, and a run that SLURM stops and queues again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fer_lab.build import build_data, build_module
from fer_lab.cli import CONF, UsageError
from fer_lab.fit import fit, history
from fer_lab.learning.callbacks import Checkpoints
from fer_lab.learning.stopping import Stopped
from fer_lab.slurm import end_at_once, queue_again, script, slurm, submitted
from fer_lab.tracking.record import open_run

ROOT = Path(__file__).resolve().parent.parent


def composed(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("slurm", overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_r4s_job_word_for_word():
    words = ["trainer=slurm", "recipe=r4_affectnet_densenet", "data.root=/data/affect net"]
    text = script(composed(*words), words, Path("/runs/jobs/r4"), Path("/home/ann/fer lab"))
    assert (
        text
        == f"""\
#!/bin/bash
#SBATCH --job-name=r4_affectnet_densenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=10
#SBATCH --mem=56G
#SBATCH --time=40:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=/runs/jobs/r4/job-%j.log

cd '/home/ann/fer lab'
export FER_LAB_REQUEUE=1
srun --cpus-per-task=10 --kill-on-bad-exit=1 --wait=0 {sys.executable} -m fer_lab.train trainer=slurm \
recipe=r4_affectnet_densenet 'data.root=/data/affect net'
"""
    )


def test_a_job_of_one_process_without_gpus():
    cfg = composed(
        *("trainer=cpu", "job.hours=2", "job.memory_gb=8", "job.cpus=4", "job.signal_seconds=60"),
        *("+job.options.partition=short", "+job.options.account=faces", "job.setup=module load python"),
    )
    lines = script(cfg, ["trainer=cpu"], Path("/runs/a b"), Path("/home")).splitlines()
    assert lines[2:4] == ["#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"]
    assert not [line for line in lines if "gpus" in line]
    assert {"#SBATCH --mem=8G", "#SBATCH --time=2:00:00", "#SBATCH --signal=USR1@60"} < set(lines)
    assert lines[10:13] == [
        "#SBATCH --output='/runs/a b/job-%j.log'",
        "#SBATCH --partition=short",
        "#SBATCH --account=faces",
    ]
    assert lines[lines.index("cd /home") + 1] == "module load python"


def fake(folder: Path, **programs: str) -> str:
    """A PATH on which programs of these names are these shell lines."""
    folder.mkdir(exist_ok=True)
    for name, line in programs.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_words_reach_the_training_as_they_were_typed_and_the_job_is_handed_over(
    tmp_path, monkeypatch, capsys
):
    """bash runs the script that was written; srun and the training are shell lines that note their words."""
    hostile = "name=$(touch hacked);`id`'\"x y"
    words = ["trainer=slurm", "recipe=r4_affectnet_densenet", f"runs_dir={tmp_path}/runs"]
    monkeypatch.setenv(
        "PATH",
        fake(tmp_path / "bin", sbatch='echo "Submitted batch job 7"', srun='shift 6; printf "%s\\n" "$@"'),
    )
    monkeypatch.chdir(tmp_path)
    path = slurm(composed(*words, "submit=true", "job.hours=1"))
    assert "Submitted batch job 7" in capsys.readouterr().out
    assert path.is_relative_to(tmp_path / "runs/jobs")
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words, "neither job.hours nor submit is the training's"

    text = script(composed(*words), [hostile], tmp_path, tmp_path)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [hostile] and not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=auto"], "trainer.devices=auto: a job asks for a number of them, such as 2"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0: a job asks for a number of them, such as 2"),
        (["name='my job'"], "name=my job: a job's name has letters, digits and . _ - = , + @"),
        (
            ["+job.options.partition='a b'"],
            "job.options.partition=a b: expected one word, as in +job.options.partition=gpu",
        ),
    ],
)
def test_what_no_job_can_be_is_refused(words, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        slurm(composed("trainer=slurm", f"runs_dir={tmp_path}", *words))
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_machine_without_sbatch_and_an_sbatch_that_refuses_are_told(tmp_path, monkeypatch):
    path = tmp_path / "job.sbatch"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=f"no sbatch on this machine; on one that has it: sbatch {path}"):
        submitted(path)
    monkeypatch.setenv("PATH", fake(tmp_path / "bin", sbatch="echo 'Invalid account' >&2; exit 1"))
    with pytest.raises(UsageError, match=f"sbatch refused {path}: Invalid account"):
        submitted(path)


def test_only_a_job_written_here_is_queued_again(monkeypatch):
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("atexit.register", lambda *call, **settings: asked.append(call))
    for environment in ({}, {"SLURM_JOB_ID": "12"}, {"FER_LAB_REQUEUE": "1"}):
        for name in ("SLURM_JOB_ID", "FER_LAB_REQUEUE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        queue_again()
    assert not asked
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    queue_again()
    assert asked == [(subprocess.run, ["scontrol", "requeue", "12"])]
    with pytest.raises(SystemExit) as ended:  # SIGUSR1 while pictures are decoded or faces judged
        end_at_once()
    assert ended.value.code == 75 and len(asked) == 2
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as ended:
        end_at_once()
    assert ended.value.code == 0 and len(asked) == 2, "the first process asks for all"


def fitted(tmp_path: Path, place: str) -> dict[str, list[tuple[int, float]]]:
    """A run of four epochs below `place`, or what is left of it: its metrics."""
    words = [
        f"cache_dir={tmp_path}/cache",
        f"runs_dir={tmp_path}/{place}",
        *SMALL[1:],
        "data.source.train=40",
    ]
    cfg = composed("trainer.accelerator=cpu", *words, "trainer.max_epochs=4", "augment=standard")
    data = build_data(cfg)
    with open_run(cfg.runs_dir, "run") as record:
        record.start()
        fit(cfg, data, build_module(cfg, data, None), record)
        return {
            name: points for name, points in history(record).items() if name.startswith(("train/", "val/"))
        }


@pytest.mark.parametrize(
    ("signals", "goes_on"),
    [((signal.SIGUSR1,), True), ((signal.SIGTERM,), False), ((signal.SIGUSR1, signal.SIGTERM), False)],
    ids=["announced", "cancelled", "cancelled when announced"],
)
def test_a_signal_ends_the_run_between_two_steps_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, signals, goes_on
):
    """SLURM queues a job again only where the run asks for it; scancel sends SIGTERM, and means it."""
    before, after_an_epoch = signal.getsignal(signal.SIGUSR1), Checkpoints.on_train_epoch_end
    asked: list[int] = []

    def told_in_the_third(self, trainer, pl_module):
        after_an_epoch(self, trainer, pl_module)
        if trainer.current_epoch == 1:
            for one in signals:
                os.kill(os.getpid(), one)

    with monkeypatch.context() as patch:
        patch.setattr("fer_lab.slurm.queue_again", lambda: asked.append(1))
        patch.setattr(Checkpoints, "on_train_epoch_end", told_in_the_third)
        patch.setattr(Checkpoints, "share", 1e9)  # a checkpoint after every epoch
        with pytest.raises(Stopped) as stopped:
            fitted(tmp_path, "told")
    assert (stopped.value.code, len(asked)) == (75, int(goes_on))
    assert "stopped; the same command continues run run" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == before
    assert (tmp_path / "told/run/last.ckpt").exists()
    if goes_on:
        assert fitted(tmp_path, "told") == fitted(tmp_path, "whole")
        assert "continuing run" in capsys.readouterr().out


TASKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=2"]
SMALL = [
    "data.source.train=900", "data.source.validation=21", "data.source.test=14", "data.size=32", "data.batch_size=4",
    "model=basic1", "optimizer=sgd", "scheduler=cosine", "trainer.max_epochs=8", "threads=1",
]  # fmt: skip


def start(task: int, port: int, words: list[str], path: str) -> subprocess.Popen[str]:
    """One of the 2 x 2 tasks of a step, as srun starts it."""
    facts = {
        "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "r4", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % 2),
        "SLURM_NODEID": str(task // 2), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "fer_lab.train", *words],
        cwd=ROOT,
        env={**os.environ, **facts, "OMP_NUM_THREADS": "1", "FER_LAB_REQUEUE": "1", "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
def test_four_tasks_that_slurm_stops_are_queued_again_and_go_on(tmp_path):
    path = fake(
        tmp_path / "bin", scontrol=f"echo $@ >> {shlex.quote(str(tmp_path / 'requeued'))}", srun="exit 1"
    )
    places = [
        f"runs_dir={tmp_path}/runs",
        f"cache_dir={tmp_path}/cache",
        f"tracking.uri=sqlite:///{tmp_path}/m.db",
    ]
    words = [*TASKS, *SMALL, *places]
    tasks = [start(task, 23451, words, path) for task in range(4)]
    deadline = time.monotonic() + 240
    while not list((tmp_path / "runs").glob("*/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [75, 0, 0, 0], said
    assert "stopped; the same command continues" in said[0] and said[1:] == ["", "", ""]
    assert (tmp_path / "requeued").read_text() == "requeue 12\n"

    tasks = [start(task, 23452, words, path) for task in range(4)]
    said = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0, 0], said
    assert "continuing run" in said[0] and "best validation score" in said[0] and said[1:] == ["", "", ""]
    assert len(list((tmp_path / "runs").glob("*/fit.json"))) == 1
