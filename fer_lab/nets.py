"""Any trained net as the live part takes it: a run, a registered model, or a file that python -m fer_lab.export wrote.

What pixels a net takes, which classes it tells, its temperature and how its faces are cut all come with it: nothing of
this is asked of the user, and the data that trained it are not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lab.cli import UsageError
from fer_lab.live.faces import Net

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fer_lab.exporting.facts import Facts
    from fer_lab.exporting.onnx import OnnxProgram
    from fer_lab.exporting.program import Program
    from fer_lab.learning.tasks import Task
    from fer_lab.models.preprocess import Preprocess

SUFFIXES = (".pt2", ".onnx")
WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
EXAMPLES = 4
"""Pictures that show whether a net was folded well."""
LARGEST = 4096
"""Pixels: no net for faces takes a larger side."""
NEEDED = ("model.net", "model.preprocess", "task", "augment", "views", "data.size", "data.channels")

Pixels = NDArray[np.uint8]
Maps = Callable[["Tensor", "Tensor"], "Tensor"]
"""Pixels (1, C, S, S) uint8 and the class (1,) to (1, S, S)."""
Explain = Callable[[Pixels], tuple[NDArray[np.float32], str]]
"""Pixels (1, C, S, S) of a face to a map (S, S) in 0..1 of what speaks for the expression that the net tells, and the
name of the method."""


class Loaded(NamedTuple):
    """`predict` takes pixels (B, C, S, S) uint8 to what `facts` say, uncalibrated; `rebuilt` is there of a run alone."""

    name: str
    facts: Facts
    predict: Callable[[Tensor], Tensor]
    rebuilt: Rebuilt | None = None


class Rebuilt(NamedTuple):
    """The trained net of a run, in evaluation mode, and what stands before and behind it."""

    net: nn.Module
    preprocess: Preprocess
    task: Task


def load(spec: str, runs_dir: Path, uri: str | None = None, flip: bool = False) -> Net:
    """`spec` is a run (as find_run takes it, models:/NAME@ALIAS and models:/NAME/VERSION too), a .pt2 or .onnx file of
    export, or a folder with one; `uri` the tracking store. `flip` averages with the mirrored face, before the temperature,
    as evaluate's views=flip does. Raises UsageError, TrackingError, FileError or DataError."""
    import torch

    name, facts, predict, _ = open_net(spec, runs_dir, uri)
    count = len(facts.classes)

    def tell(pixels: Pixels) -> NDArray[np.float32]:
        from fer_lab.evaluation.calibration import scaled

        with torch.inference_mode():
            given = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
            told = predict(given).float()
            found = ((told + predict(given.flip(-1)).float()) / 2 if flip else told).numpy()
        if facts.temperature is not None and count:
            found = np.concatenate([scaled(found[:, :count], facts.temperature), found[:, count:]], axis=1)
        return np.asarray(found, np.float32)

    return Net(
        name=name,
        classes=facts.classes,
        size=facts.size,
        channels=facts.channels,
        affect=facts.affect,
        margin=facts.margin,
        guessed=facts.face_crop != "haar" and not facts.framed,
        tell=tell,
    )


def open_net(spec: str, runs_dir: Path, uri: str | None) -> Loaded:
    path = file_of(spec)
    if path is not None:
        return open_file(path)
    from fer_lab.tracking.find import find_run

    named = spec.strip() if spec.strip().startswith("models:/") else ""
    return open_run(find_run(spec, runs_dir, uri), named)


def file_of(spec: str) -> Path | None:
    """The exported file that `spec` names, or that the folder has which it names; None where it is something else."""
    path = Path(spec.strip()).expanduser()
    if path.suffix in SUFFIXES:
        return path
    if path.is_file():
        known = path.suffix in WEIGHTS
        what = f"weights alone; name their run ({path.parent})" if known else "no net; name a run"
        raise UsageError(
            f"run={spec} is a file of {what}, or a .pt2 or .onnx file of python -m fer_lab.export"
        )
    if not path.is_dir() or (path / "config.yaml").exists():
        return None
    for suffix in SUFFIXES:
        found = sorted(path.glob(f"[!.]*{suffix}"))
        if len(found) > 1:
            raise UsageError(f"run={spec} holds {', '.join(one.name for one in found)}: name one of them")
        if found:
            return found[0]
    if (path / "net.json").exists():
        raise UsageError(
            f"run={spec} holds text weights: python -m fer_lab.export text={spec} makes a .pt2 of them"
        )
    return None


def open_file(path: Path) -> Loaded:
    """Raises FileError where it is missing, broken, another's, would run code, or is not what it says of itself."""
    program = open_onnx(path) if path.suffix == ".onnx" else open_program(path)
    refuse_misfit(program, path)
    return Loaded(path.name, program.facts, program)


def open_program(path: Path) -> Program:
    from fer_lab.exporting.program import load as read

    return read(path)


def open_onnx(path: Path) -> OnnxProgram:
    import torch

    from fer_lab.exporting.onnx import OnnxProgram

    if not find_spec("onnxruntime"):
        raise UsageError(
            f"{path} needs ONNX Runtime: pip install 'fer_lab[export]'; a .pt2 needs nothing more"
        )
    return OnnxProgram(path, torch.get_num_threads())


def refuse_misfit(program: Program | OnnxProgram, path: Path) -> None:
    """Files come from elsewhere: what this one says of itself is tried before memory is taken for it."""
    import torch

    from fer_lab.exporting.facts import FileError

    facts, reason = program.facts, "no net for faces is like this"
    told, wanted = 0, len(facts.classes) + 2 * bool(facts.affect)
    try:
        if (
            all(isinstance(name, str) for name in facts.classes)
            and 1 <= facts.size <= LARGEST
            and facts.channels in (1, 3)
            and -0.5 < facts.margin <= 2
            and (facts.temperature is None or 0 < facts.temperature < math.inf)
        ):
            shape = (1, facts.channels, facts.size, facts.size)
            told = program(torch.zeros(shape, dtype=torch.uint8)).shape[1]
            reason = f"it tells {told} numbers of a face"
    except Exception as error:  # of types, of shapes, of either runtime
        reason = " ".join(str(error).split())[:150]
    if told != wanted:
        said = f"{facts.channels}x{facts.size}x{facts.size}, margin {facts.margin}, temperature {facts.temperature}"
        raise FileError(
            f"{path} is not what it says of itself ({said}, {wanted} outputs): {reason}; "
            "python -m fer_lab.export run=ID writes it again"
        )


def open_run(folder: Path, name: str = "") -> Loaded:
    """The run's best weights, batch norms folded into the layers before them, and the views that the run averages."""
    import torch

    from fer_lab.export import facts_of
    from fer_lab.exporting.facts import ExportError
    from fer_lab.exporting.predictor import Predictor, fold

    config = config_of(folder)
    rebuilt = rebuild(folder, config)
    net, preprocess, task = rebuilt
    facts = facts_of(folder, config, task)
    trained = Predictor(net, preprocess, facts.views, facts.crop, task.predictions)
    generator = torch.Generator().manual_seed(0)
    shape = (EXAMPLES, facts.channels, facts.size, facts.size)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    views = trained.augment.test_views(noise, facts.views).flatten(0, 1)
    with suppress(ExportError):  # a net that cannot be folded tells the same, slower
        net = fold(net, preprocess(views)).net
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # up to twice as fast on CPUs
    predictor = Predictor(net, preprocess, facts.views, facts.crop, task.predictions).eval()
    return Loaded(name or folder.resolve().name, facts, predictor, rebuilt)


def config_of(folder: Path) -> DictConfig:
    """Raises UsageError where the run kept no net, or its config.yaml is not what training writes."""
    from yaml import YAMLError

    from fer_lab.finished import refuse_without_net

    refuse_without_net(folder)
    path = folder / "config.yaml"
    try:
        config = OmegaConf.load(path)
        missing = [key for key in NEEDED if OmegaConf.select(config, key) is None]
        fault = f"it has no {', '.join(missing)}" if missing else ""
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        fault = str(error).splitlines()[0]
    if fault:
        raise UsageError(
            f"{path} is not the config of a run: {fault}; copy it once more, or train the run again"
        )
    assert isinstance(config, DictConfig)
    return config


def rebuild(folder: Path, config: DictConfig) -> Rebuilt:
    """Without the data set. Raises UsageError where best.pt is broken or of another net."""
    from fer_lab.build import instantiate
    from fer_lab.models.weights import WeightsError, read

    path, parts = folder / "best.pt", (config.model.net, config.model.preprocess, config.task)
    net, preprocess, task = (instantiate(part) for part in parts)
    try:
        net.load_state_dict(read(path))
    except WeightsError as error:
        reason = str(error).partition("). ")[0] + ")"
        raise UsageError(f"{reason}; copy the run's folder once more, or train it again") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is not of the net in {folder / 'config.yaml'}: {reason}") from error
    return Rebuilt(net.eval().requires_grad_(False), preprocess.eval(), task.eval())


def explainer(spec: str, runs_dir: Path, uri: str | None = None) -> Explain | None:
    """Grad-CAM for a run's net; occlusion for an exported file, whose layers are out of reach, and for a net without a
    map. None without captum, and for a net that tells no expressions. Raises what `load` raises."""
    if not find_spec("captum"):
        return None
    loaded = open_net(spec, runs_dir, uri)
    if not loaded.facts.classes:
        return None
    maps = loaded.rebuilt and grad_cam_of(loaded.rebuilt, loaded.facts)
    method, maps = ("Grad-CAM", maps) if maps else ("occlusion", occlusion_of(loaded))

    def explain(pixels: Pixels) -> tuple[NDArray[np.float32], str]:
        import torch

        given = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
        with torch.no_grad():
            told = loaded.predict(given)[:, : len(loaded.facts.classes)].argmax(1)
        found = maps(given, told)[0].clamp_min(0)
        return (found / found.max().clamp_min(1e-12)).numpy(), method

    return explain


def grad_cam_of(rebuilt: Rebuilt, facts: Facts) -> Maps | None:
    """None where no convolution of the net gives a map."""
    import torch
    from torch.nn.functional import pad

    from fer_lab.data.augment import Augment
    from fer_lab.evaluation.explain import grad_cam, last_map, steps, without_surprises

    net, preprocess, task = rebuilt
    augment = Augment(crop=facts.crop)
    without_surprises(net)
    blank = torch.zeros(1, facts.channels, facts.size, facts.size, dtype=torch.uint8)
    try:
        layer = last_map(steps(net, preprocess(augment.test_views(blank)[0]))).module
    except ValueError:
        return None

    def forward(faces: Tensor) -> Tensor:
        logits = task.logits(net(preprocess(faces)))
        assert logits is not None
        return logits.float()

    def maps(pixels: Tensor, targets: Tensor) -> Tensor:
        (inner,) = augment.test_views(pixels)  # (1, C, s, s): the middle, where the run crops
        before = round((facts.size - inner.shape[-1]) / 2)
        after = facts.size - inner.shape[-1] - before
        return pad(grad_cam(forward, layer, inner, targets), (before, after, before, after))

    return maps


def occlusion_of(loaded: Loaded) -> Maps:
    from fer_lab.data.augment import unit_range
    from fer_lab.evaluation.explain import occlusion

    count = len(loaded.facts.classes)

    def logits(faces: Tensor) -> Tensor:
        """Whose softmax are the probabilities, which are all that a file tells."""
        pixels = (faces * 255).round().byte()
        return loaded.predict(pixels)[:, :count].clamp_min(1e-12).log()

    return lambda pixels, targets: occlusion(logits, unit_range(pixels), targets)
