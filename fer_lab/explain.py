"""python -m fer_lab.explain run=ID [faces=mistakes|typical|[NAME,…]] [count=8] [usage=test]: what a net looks at."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError, main, near

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluation.explain import Forward, Step
    from fer_lab.evaluation.maps import Explained
    from fer_lab.learning.module import FerModule

CHOICES = ("mistakes", "typical")
CHANNELS = 12
NOTES = {
    "maps.png": "Of each face: Grad-CAM of the last map before the net's answer (bright: speaks for what the net said) and "
    "occlusion (red: hiding it lowers that probability, blue: raises it).",
    "filters.png": "The filters of the first convolution; grey is zero.",
    "features.png": "The strongest feature maps of some layers for the first of these faces.",
    "graph.png": "The net: its layers, the shapes of their outputs, their parameters.",
}


def explain(cfg: DictConfig) -> Path:
    """Writes maps, filters, feature maps and the net as pictures to runs/ID/explain; checks the maps and says so."""
    refuse_what_cannot_be(cfg)
    from fer_lab.evaluation.explain import last_map, sanity, steps
    from fer_lab.report import keep

    folder, module, data = rebuilt(cfg)
    forward = logits_of(module)
    usage = cfg.usage if len(getattr(data.split, cfg.usage)) else "validation"
    if usage != cfg.usage:
        print(f"this split has no {cfg.usage} part: the faces are of validation, which chose the epoch")
    rows, told = chosen(cfg, folder, module, data, usage)
    faces = seen(module, data, rows)
    try:
        found = steps(module.judged, module.preprocess(faces))
        layer = last_map(found)
    except ValueError as error:
        raise UsageError(str(error)) from None
    output = Path(cfg.output).expanduser() if cfg.output else folder / "explain"
    draw(module, data, rows, faces, forward, int(cfg.layers), output)
    check = sanity(forward, layer.module, seen(module, data, spread(getattr(data.split, usage), cfg.checked)))
    write_page(output, folder.resolve().name, usage, told, f"{layer.name} ({layer.kind})", check.sentence)
    print(check.sentence)
    print(f"{', '.join(NOTES)} and explain.md are in {output}")
    keep(folder, cfg, output)
    return output


def refuse_what_cannot_be(cfg: DictConfig) -> None:
    """Before anything heavy is imported."""
    from fer_lab.data.faces import USAGES

    faults = [] if find_spec("captum") else ["maps need captum: pip install fer_lab[explain]"]
    if isinstance(cfg.faces, str) and cfg.faces not in CHOICES:
        faults.append(
            f"faces={cfg.faces}{near(cfg.faces, CHOICES)}: expected {', '.join(CHOICES)} or names [NAME,…]"
        )
    if cfg.usage not in USAGES:
        faults.append(f"usage={cfg.usage}; choices: {', '.join(USAGES)}")
    faults += [f"{key}={cfg[key]}: expected at least 1" for key in ("count", "layers") if cfg[key] < 1]
    faults += [f"checked={cfg.checked}: expected at least 2"] * (cfg.checked < 2)
    if faults:
        raise UsageError("\n".join(faults))


def rebuilt(cfg: DictConfig) -> tuple[Path, FerModule, FaceData]:
    from fer_lab.evaluate import overridden, rebuild
    from fer_lab.evaluation.explain import without_surprises
    from fer_lab.finished import refuse_without_net
    from fer_lab.tracking.find import find_run
    from fer_lab.train import set_threads

    folder = find_run(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri)
    refuse_without_net(folder)
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    config = overridden(saved, cfg)
    set_threads(config.threads)
    module, data = rebuild(folder, config)
    if not module.task.classes:
        raise UsageError(
            f"{folder.name} tells valence and arousal alone; maps are of expressions (task emotion or joint)"
        )
    without_surprises(module.judged)
    return folder, module.eval(), data


def logits_of(module: FerModule) -> Forward:
    def forward(faces: Tensor) -> Tensor:
        logits = module.task.logits(module.judged(module.preprocess(faces)))
        assert logits is not None
        return logits.float()

    return forward


def seen(module: FerModule, data: FaceData, rows: NDArray[np.int64]) -> Tensor:
    """(B, C, H, W) in 0..1, as the net sees these faces without test-time views."""
    import torch

    batches = data.evaluation(rows, "none", module.device, as_images=True)
    return torch.cat([batch.images[0] for batch in batches])


def chosen(
    cfg: DictConfig, folder: Path, module: FerModule, data: FaceData, usage: str
) -> tuple[NDArray[np.int64], list[str]]:
    """The rows of the faces to explain, and their names."""
    import numpy as np

    if not isinstance(cfg.faces, str):
        rows = named(data, [str(name) for name in cfg.faces])
    else:
        part = getattr(data.split, usage)
        labels, found = data.index.labels[part], probabilities(folder, module, data, part, usage)
        order = worst(labels, found) if cfg.faces == "mistakes" else surest(labels, found)
        if not len(order):
            raise UsageError(
                f"no {cfg.faces} among the {len(part):,} {usage} faces; try faces=typical or mistakes"
            )
        rows = part[order[: cfg.count]]
    return np.asarray(rows), [data.index.names[row] for row in rows]


def named(data: FaceData, names: Sequence[str]) -> list[int]:
    """Rows by name or by the end of a name that only one has."""
    rows, faults = [], []
    for name in names:
        fits = [row for row, one in enumerate(data.index.names) if one == name or one.endswith(f"/{name}")]
        if len(fits) == 1:
            rows += fits
        else:
            hint = near(name, data.index.names) if not fits else ": type more of the name"
            faults.append(f"faces: {name} fits {len(fits)} faces of {data.index.name}{hint}")
    if faults:
        raise UsageError("\n".join(faults))
    return rows


def probabilities(
    folder: Path, module: FerModule, data: FaceData, rows: NDArray[np.int64], usage: str
) -> NDArray[np.float32]:
    """(N, K) as the run judged these faces, or predicted now where it judged others."""
    import numpy as np

    from fer_lab.evaluate import predict
    from fer_lab.finished import read_part

    part = read_part(folder / "figures", usage)
    if part is not None and part.probabilities is not None:
        places = {name: place for place, name in enumerate(part.names)}
        names = [data.index.names[row] for row in rows]
        if all(name in places for name in names):
            return part.probabilities[[places[name] for name in names]].astype(np.float32)
    return predict(module, data, rows, "none")[:, : len(data.index.classes)]


def worst(labels: NDArray[np.int64], found: NDArray[np.float32]) -> NDArray[np.int64]:
    """Wrong answers, those first that gave the true class the least probability."""
    import numpy as np

    wrong = np.flatnonzero(found.argmax(1) != labels)
    return wrong[np.argsort(found[wrong, labels[wrong]], kind="stable")]


def surest(labels: NDArray[np.int64], found: NDArray[np.float32]) -> NDArray[np.int64]:
    """Right answers, the surest of each class first, then the second surest of each."""
    import numpy as np

    right = np.flatnonzero(found.argmax(1) == labels)
    turn = np.zeros(len(right), dtype=int)
    for label in np.unique(labels[right]):
        mine = np.flatnonzero(labels[right] == label)
        turn[mine[np.argsort(-found[right[mine], label], kind="stable")]] = np.arange(len(mine))
    return right[np.lexsort((labels[right], turn))]


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    import numpy as np

    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def draw(
    module: FerModule,
    data: FaceData,
    rows: NDArray[np.int64],
    faces: Tensor,
    forward: Forward,
    layers: int,
    output: Path,
) -> None:
    from fer_lab import figures
    from fer_lab.evaluation import maps
    from fer_lab.evaluation.explain import feature_maps, first_filters, steps

    seen_by_net = module.preprocess(faces)
    found = steps(module.judged, seen_by_net)
    first = feature_maps(module.judged, seen_by_net[:1], found, layers, CHANNELS)
    made = {
        "maps.png": maps.explanations(explained(data, rows, faces, forward, found)),
        "filters.png": maps.filters(first_filters(module.judged)),
        "features.png": maps.features(faces[0].cpu().numpy(), first),
        "graph.png": maps.graph(found, type(module.judged).__name__, tuple(seen_by_net.shape[1:])),
    }
    for name, figure in made.items():
        figures.save(figure, output / name)


def explained(
    data: FaceData, rows: NDArray[np.int64], faces: Tensor, forward: Forward, found: list[Step]
) -> list[Explained]:
    """Both maps of each face, for what the net says of it."""
    import torch

    from fer_lab.evaluation.explain import grad_cam, last_map, occlusion
    from fer_lab.evaluation.maps import Explained

    with torch.no_grad():
        told = forward(faces).softmax(1)
    targets, classes = told.argmax(1), data.index.classes
    cams = grad_cam(forward, last_map(found).module, faces, targets).cpu().numpy()
    hidden = occlusion(forward, faces, targets).cpu().numpy()
    shown = []
    for place, row in enumerate(rows):
        true, said = int(data.index.labels[row]), int(targets[place])
        words = f"true: {classes[true]} {float(told[place, true]):.0%}"
        if said != true:
            words += f"\nsaid: {classes[said]} {float(told[place, said]):.0%}"
        shown.append(Explained(faces[place].cpu().numpy(), cams[place], hidden[place], words))
    return shown


def write_page(output: Path, run: str, usage: str, names: Sequence[str], layer: str, sentence: str) -> None:
    lines = [f"# What {run} looks at", f"Check: {sentence}.", f"Grad-CAM is of {layer}."]
    lines += [f"![{text}]({name})\n\n{text}" for name, text in NOTES.items()]
    lines.append(f"Faces ({usage}), row by row: {', '.join(names)}.")
    (output / "explain.md").write_text("\n\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(explain, "explain")
