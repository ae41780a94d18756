"""A real window on a screen that nobody sees, and somebody who presses its keys."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageGrab

from tests.live.cameras import until, write

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A screen that nobody sees."""
    missing = [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"a real window needs {' and '.join(missing)}: apt-get install xvfb xdotool")
    pytest.importorskip("tkinter", reason="a window needs tkinter: apt-get install python3-tk")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "800x640x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f":{server.stdout.readline().strip()}"
        server.terminate()


class Desk:
    """Somebody before the window of `watch(source, …)`, which runs in a process of its own."""

    SCRIPT = """
import sys
from pathlib import Path
from fer_lab.live.camera import watch
from fer_lab.live.detect import make
from fer_lab.live.look import Look
from fer_lab.live.record import Recorder, silent
source, out, label = sys.argv[1:]
recorder = Recorder(out, label, "anna") if label else None
told = watch(source, Look(silent(), make("none")), record=recorder, out=Path(out))
print(told.frames > 0, told.faces == told.frames, told.interrupted, told.grabbed < 240)
"""

    def __init__(self, display: str, source: str, out: Path, label: str = "") -> None:
        self.environment = {
            "DISPLAY": display,
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.display = display
        command = [sys.executable, "-c", self.SCRIPT, source, str(out), label]
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def xdotool(self, *words: str) -> str:
        done = subprocess.run(
            ["xdotool", *words], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    def title(self, pattern: str) -> str:
        """Waits until a window is called so (in ASCII: xdotool reads no other)."""
        return self.xdotool(
            "search", "--sync", "--onlyvisible", "--limit", "1", "--name", pattern
        ).splitlines()[0]

    def press(self, *keys: str) -> None:
        """With the pointer in the window: where no window manager is, keys go where that is."""
        self.xdotool("mousemove", "100", "100", "key", *keys)

    def screen(self) -> np.ndarray:
        return np.asarray(ImageGrab.grab((0, 0, 640, 480), xdisplay=self.display).convert("RGB"))

    def shows(self, path: Path) -> Callable[[], bool]:
        expected = np.asarray(Image.open(path).convert("RGB"))
        return lambda: np.array_equal(self.screen(), expected)

    def end(self) -> tuple[int, str]:
        words = self.process.stdout.read()
        return self.process.wait(60), words


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """Two minutes of a drifting pattern, two frames a second."""
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    pattern = np.asarray(Image.fromarray(rough).resize((640, 480), Image.Resampling.BICUBIC))
    pictures = [np.roll(pattern, 9 * number, axis=1) for number in range(240)]
    return write(tmp_path_factory.mktemp("clip") / "drift.mp4", pictures, 2)


def test_the_keys_of_a_window(display, long_clip, tmp_path):
    with Desk(display, f"camera:{long_clip}", tmp_path) as desk:
        desk.title(r"^fer_lab .* camera:.*drift\.mp4$")
        desk.press("space")
        desk.title("paused$")
        desk.press("s")
        until(lambda: list(tmp_path.glob("snapshot-*.png")))
        (first,) = tmp_path.glob("snapshot-*.png")
        until(desk.shows(first))
        first = first.rename(tmp_path / "first.png")
        desk.press("m", "s")
        until(lambda: list(tmp_path.glob("snapshot-*.png")))
        (second,) = tmp_path.glob("snapshot-*.png")
        until(desk.shows(second))
        plain, turned = (np.asarray(Image.open(path))[200:460, 20:620] for path in (first, second))
        assert plain.std() > 20 and np.array_equal(plain[:, ::-1], turned)  # below the words, inside the box
        desk.press("space")
        desk.title(r"drift\.mp4$")
        until(lambda: not desk.shows(second)())
        desk.press("q")
        assert desk.end() == (0, "True True False True\n")


def test_the_keys_of_a_recording(display, long_clip, tmp_path):
    with Desk(display, f"camera:{long_clip}", tmp_path, "happy") as desk:
        window = desk.title(r"drift\.mp4$")
        assert not list(tmp_path.glob("happiness/*"))
        desk.press("r")
        desk.title("recording$")
        until(lambda: len(list(tmp_path.glob("happiness/anna_drift_*.png"))) > 1)
        desk.press("r")
        desk.title(r"drift\.mp4$")
        desk.press("space")
        desk.title("paused$")
        before = set(tmp_path.glob("happiness/*.png"))
        desk.press("s")
        until(lambda: set(tmp_path.glob("happiness/*.png")) - before)
        desk.xdotool("windowsize", window, "320", "400")
        until(lambda: desk.screen()[380, 400].tolist() == [0, 0, 0])
        desk.press("Escape")
        assert desk.end() == (0, "True True False True\n")
