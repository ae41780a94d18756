"""python -m fer_lab.slurm [job.KEY=VALUE] [submit=true] [what fer_lab.train takes]: a training as a job of SLURM."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fer_lab.cli import UsageError, main
from fer_lab.data.faces import digest
from fer_lab.ranks import leads

REQUEUE = "FER_LAB_REQUEUE"
"""Set in the jobs written here: these may be queued again by the run itself."""

SCRIPT = """\
#!/bin/bash
{options}

cd {folder}
{setup}export {requeue}=1
srun --cpus-per-task={cpus} --kill-on-bad-exit=1 --wait=0 {command}
"""
"""--wait=0: the first process judges when the others have ended, and srun must not end it for that."""


def slurm(cfg: DictConfig) -> Path:
    """Writes the job below runs_dir, and hands it to sbatch if asked to; its path."""
    refuse_what_no_job_can_be(cfg)
    words = [text for text in HydraConfig.get().overrides.task if not belongs_to_the_job(text)]
    folder = Path(cfg.runs_dir).absolute() / "jobs" / f"{cfg.name}-{digest(*words)[:8]}"
    path = folder / "job.sbatch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(cfg, words, folder, Path.cwd()))
    print(submitted(path) if cfg.submit else f"job: {path} · next: sbatch {shlex.quote(str(path))}")
    return path


def belongs_to_the_job(override: str) -> bool:
    return override.lstrip("+~").partition("=")[0].split(".")[0] in ("job", "submit")


def script(cfg: DictConfig, words: list[str], folder: Path, here: Path) -> str:
    """The text of the job that trains what `words` say, started from the folder `here`."""
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options(cfg, folder)),
        folder=shlex.quote(str(here)),
        setup=f"{cfg.job.setup}\n" if cfg.job.setup else "",
        requeue=REQUEUE,
        cpus=cfg.job.cpus,
        command=shlex.join([sys.executable, "-m", "fer_lab.train", *words]),
    )


def options(cfg: DictConfig, folder: Path) -> list[str]:
    job, trainer = cfg.job, cfg.trainer
    gpus = [] if trainer.accelerator == "cpu" else [f"--gpus-per-node={trainer.devices}"]
    return [
        f"--job-name={cfg.name}",
        f"--nodes={trainer.get('num_nodes', 1)}",
        f"--ntasks-per-node={trainer.devices}",
        *gpus,
        f"--cpus-per-task={job.cpus}",
        f"--mem={job.memory_gb}G",
        f"--time={job.hours}:00:00",
        "--requeue",
        f"--signal=USR1@{job.signal_seconds}",
        "--open-mode=append",
        f"--output={shlex.quote(str(folder / 'job-%j.log'))}",
        *(f"--{name}={value}" for name, value in job.options.items()),
    ]


def refuse_what_no_job_can_be(cfg: DictConfig) -> None:
    """What sbatch would refuse, or take for something else."""
    wrong = []
    for key in ("devices", "num_nodes"):
        if not isinstance(value := cfg.trainer.get(key, 1), int) or value < 1:
            wrong.append(f"trainer.{key}={value}: a job asks for a number of them, such as 2")
    if not re.fullmatch(r"\w[\w.=,+@-]*", cfg.name):
        wrong.append(f"name={cfg.name}: a job's name has letters, digits and . _ - = , + @")
    for name, value in cfg.job.options.items():
        if not re.fullmatch(r"[a-z-]+=\S+", f"{name}={value}"):
            wrong.append(f"job.options.{name}={value}: expected one word, as in +job.options.partition=gpu")
    if wrong:
        raise UsageError("\n".join(wrong))


def submitted(path: Path) -> str:
    """What sbatch answers."""
    try:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(f"no sbatch on this machine; on one that has it: sbatch {path}") from None
    if done.returncode:
        raise UsageError(f"sbatch refused {path}: {done.stderr.strip()}")
    return f"{done.stdout.strip()} · {path}"


def watch() -> None:
    """In such a job SIGUSR1 (not SIGTERM: scancel's) ends this process before and after training, too; training has a way of its own."""
    if os.environ.get(REQUEUE):
        signal.signal(signal.SIGUSR1, end_at_once)


def end_at_once(*_: object) -> None:
    if leads():
        queue_again()
    raise SystemExit(75 if leads() else 0)


def queue_again() -> None:
    """At the very end of this process, when its record is closed: SLURM ends the job as it queues it again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job and os.environ.get(REQUEUE):
        atexit.register(subprocess.run, ["scontrol", "requeue", job], check=False)


if __name__ == "__main__":
    if not any(word.startswith("trainer=") for word in sys.argv[1:]):
        sys.argv.append("trainer=slurm")
    main(slurm, "slurm")
