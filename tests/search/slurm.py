"""A SLURM of one machine, as far as submitit knows one: `python slurm.py sbatch|srun|sacct|scontrol …`, behind scripts
of those names on PATH. FAKE_SLURM is its folder: the scripts that were submitted stay there, jobs wait for a file `go`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])
JOB = "12"


def sbatch(script: str) -> None:
    """The array is run by a process of its own, which outlives whoever submitted."""
    text = Path(script).read_text()
    submitted = FOLDER / f"{len(list(FOLDER.glob('*.sh')))}.sh"
    submitted.write_text(text)
    runner = subprocess.Popen(
        [sys.executable, __file__, "array", str(submitted)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    (FOLDER / "runners").open("a").write(f"{runner.pid}\n")
    print(f"Submitted batch job {JOB}")


def array(script: str) -> None:
    last, parallel = map(int, re.search(r"--array=0-(\d+)%(\d+)", Path(script).read_text()).groups())
    while not (FOLDER / "go").exists():
        time.sleep(0.05)
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda task: job(script, task), range(last + 1)))


def job(script: str, task: int) -> None:
    facts = {
        "SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_END_TIME": str(int(time.time()) + 3600),
    }  # fmt: skip
    done = subprocess.run(["bash", script], env={**os.environ, **facts}, check=False)
    (FOLDER / f"{JOB}_{task}").write_text("COMPLETED" if done.returncode == 0 else "FAILED")


def srun(*words: str) -> None:
    """Output goes where the script says, for this task."""
    places = {"%A": JOB, "%a": os.environ["SLURM_ARRAY_TASK_ID"], "%t": "0"}
    files = {}
    words_left = list(words)
    while words_left[0].startswith("--"):
        option = words_left.pop(0)
        if option in ("--output", "--error"):
            path = words_left.pop(0)
            for sign, value in places.items():
                path = path.replace(sign, value)
            files[option] = Path(path)
            files[option].parent.mkdir(parents=True, exist_ok=True)
    with files["--output"].open("a") as output, files["--error"].open("a") as error:
        sys.exit(subprocess.run(words_left, stdout=output, stderr=error, check=False).returncode)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for path in FOLDER.glob(f"{JOB}_*"):
        print(f"{path.name}|{path.read_text()}|here")


def scontrol(*words: str) -> None:
    (FOLDER / "requeued").open("a").write(" ".join(words) + "\n")


if __name__ == "__main__":
    command, *given = sys.argv[1:]
    {"sbatch": sbatch, "array": array, "srun": srun, "sacct": sacct, "scontrol": scontrol}[command](*given)
