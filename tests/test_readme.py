"""Every command of the README is run as it stands; PATH and ID are what a user would put there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from fer_lab.data import draw
from fer_lab.data.moving import scenes, write_video

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS += re.findall(r"`(python -m fer_lab\.data[^`]*)`", README)
QUICK = {
    "fer_lab.train": ["trainer=smoke", "trainer.accelerator=cpu", "data.batch_size=16"],
    "fer_lab.sweep": [
        "trainer=smoke", "trainer.accelerator=cpu", "data.batch_size=16", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.confirm={top: 1, seeds: 1}",
    ],
}  # fmt: skip


def test_every_line_is_one_that_this_file_knows_how_to_run():
    known = (
        "make train",
        "make test",
        "make ui",
        "make bench-triton",
        ". .venv/bin/activate",
        "python -m fer_lab.",
    )
    assert len(COMMANDS) >= 10
    assert not [command for command in COMMANDS if not command.startswith(known)]


def test_every_picture_and_file_that_it_links_to_is_here():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) >= 5
    assert not [link for link in links if not (ROOT / link).exists()]


def test_ci_says_why_a_browser_cannot_be_had(tmp_path):
    """With an apt-get that fails, on a machine that has nothing: what it says is shown, and the tests are run."""
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    for name, script in (
        ("id", "echo 0"), ("apt-get", "echo E: no network >&2; exit 100"), ("make", 'echo "make $1"'),
    ):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    bash = str(shutil.which("bash"))
    done = subprocess.run(
        [bash, ROOT / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert "E: no network" in done.stderr
    assert "cannot be had here, so that their tests skip: chromium xvfb" in done.stderr
    assert done.stdout == "make lint\nmake test\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A user's folder: drawn data, runs and caches of its own."""
    folder = tmp_path_factory.mktemp("readme")
    draw.write_jaffe(folder / "jaffe")
    draw.write_fer2013_folders(folder / "fer2013", {"train": 70, "validation": 28, "test": 28})
    write_video(folder / "film.mp4", 20)
    return folder


def judged_run(home: Path) -> str:
    """The run of the README's first training command, by which time it has made one."""
    return next(
        path.parent.parent.name for path in home.glob("runs/small-synthetic-*/figures/validation.json")
    )


def two_runs(home: Path, preloaded) -> list[str]:
    """That run and another of its kind, on the same faces."""
    first = judged_run(home)
    if not (home / "rival").exists():
        run("python -m fer_lab.train name=rival seed=1", home, preloaded)
        next(home.glob("runs/rival-*/figures/validation.json"))
        (home / "rival").touch()
    return [first, next(home.glob("runs/rival-*")).name]


def run(command: str, home: Path, preloaded) -> subprocess.CompletedProcess[str]:
    line = shlex.split(command)
    line[0] = sys.executable
    if "data=jaffe" in line:
        line += ["model.weights=null", "data.size=32"]
    line = [
        word.replace("PATH", str(home / ("jaffe" if "jaffe" in " ".join(line) else "fer2013")))
        for word in line
    ]
    if line[2] == "fer_lab.data.draw":
        line[-1] = str(home / "drawn")
    elif line[2] == "fer_lab.sweep" and line[3] != "-m":
        line += [f"runs_dir={home}/runs"]
    elif line[2] == "fer_lab.audit":
        line += [f"cache_dir={home}/cache"]
    elif line[2] == "fer_lab.predict":
        line = predicting(line, home)
    elif "--help" not in line:
        quick = QUICK.get(line[2], [])
        if "recipe=jaffe_transfer" in line:
            quick = ["data.crop=none"]  # the detector does not take every drawing for a face
        if line[2] == "fer_lab.report" and "run=ID" not in line:
            quick = [f"output={home}/reports"]
        line += [*quick, f"runs_dir={home}/runs", f"cache_dir={home}/cache"]
    if "hydra.sweeper.fit=5m" in line:
        line += ["hydra.sweeper.timeout=1"]
    if line[2:4] == ["fer_lab.sweep", "-m"] and command != "python -m fer_lab.sweep -m":
        line += ["hydra.sweeper.workers=1"]  # the first sweep has as many as it takes by itself
    if line[2] == "fer_lab.sync":
        line = [*line[:3], f"runs={home}/runs"]
    if "[ID,ID]" in command:
        line = [word.replace("[ID,ID]", f"[{','.join(two_runs(home, preloaded))}]") for word in line]
    if "ID" in command.replace("[ID,ID]", ""):
        line = [re.sub(r"(run=|runs:/)ID$", rf"\g<1>{judged_run(home)}", word) for word in line]
    store = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    if command == "python -m fer_lab.train":  # one of them as a new user's terminal has it
        return subprocess.run(line, cwd=ROOT, env=store, capture_output=True, text=True, check=False)
    return preloaded(line, cwd=ROOT, env=store)


def predicting(line: list[str], home: Path) -> list[str]:
    """On a film, which also plays in a camera's stead."""
    line = [word.replace(str(home / "fer2013"), str(home / "film.mp4")) for word in line]
    if "source=camera:0" in line:
        line[line.index("source=camera:0")] = f"source=camera:{home}/film.mp4"
        line.append("headless=true")
    return [
        *line,
        f"runs_dir={home}/runs",
        f"out={home}/{'recorded' if 'record=' in ' '.join(line) else 'told'}",
    ]


COMMANDS_THAT_END = [line for line in COMMANDS if line.startswith("python") and "page=true" not in line]


@pytest.mark.parametrize("command", COMMANDS_THAT_END)
def test_a_command_of_the_readme_does_what_it_says(command, home, preloaded):
    done = run(command, home, preloaded)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_make_lists_its_targets_and_train_and_test_set_up_first():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "train", "test", "check", "ui", "bench-train", "bench-triton", "bench-predict"):
        assert f"\n{target} " in f"\n{listed}"
    for target in ("train", "test", "ui", "bench-triton"):
        planned = subprocess.run(
            ["make", "-n", "-W", "requirements.lock", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "pip install" in planned.stdout and planned.stdout.index("pip install") < planned.stdout.index(
            "/python -m"
        )


def test_make_ui_opens_mlflow_on_loopback_alone(home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert (
        "-m fer_lab.ui"
        in subprocess.run(["make", "-n", "ui"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "fer_lab.ui", "--port", str(port), "--uri", f"sqlite:///{home}/mlflow.db"],
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
                break
            except OSError:
                time.sleep(0.5)
        assert "MLflow" in page
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    finally:
        server.terminate()
        server.wait(20)


def somebody() -> bytes:
    """A drawn room with one person in it, whom the cascade finds."""
    *_, last = scenes(60, seed=3, together=1)
    assert len(last.visitors) == 1
    data = BytesIO()
    Image.fromarray(last.pixels).save(data, "png")
    return data.getvalue()


def test_the_page_of_a_run_opens_on_loopback_and_tells(home):
    (command,) = (line for line in COMMANDS if "page=true" in line)
    words = [word.replace("run=ID", f"run={judged_run(home)}") for word in shlex.split(command)]
    line = [sys.executable, *words[1:], "port=0", f"runs_dir={home}/runs"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        try:
            assert "fer_lab" in urllib.request.urlopen(f"{address}/", timeout=30).read().decode()
            asked = urllib.request.Request(f"{address}/predict", somebody(), {"Content-Type": "image/png"})
            told = json.load(urllib.request.urlopen(asked, timeout=30))
            assert told["status"] == "ok"
            (face,) = told["faces"]
            assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        finally:
            server.terminate()


@pytest.mark.long
def test_make_train_on_a_bare_clone_trains_and_can_be_repeated(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    for words in ("next: python -m fer_lab.evaluate run=vgg19-jaffe-", "trained before"):
        line = ["make", "train"]
        done = subprocess.run(line, cwd=tmp_path / "clone", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert words in done.stdout
