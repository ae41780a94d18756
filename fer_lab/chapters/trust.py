"""How far a prediction can be trusted: its confidence, worse faces than these, and the labels themselves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fer_lab.chapters.case import Case, bounds, percent
from fer_lab.finished import Part
from fer_lab.pages import Block, Section, Table, Text, Warn

if TYPE_CHECKING:
    from torch import Tensor

    from fer_lab.evaluation.calibration import Temperature
    from fer_lab.evaluation.noise import Suspects
    from fer_lab.evaluation.robustness import Perturbation, Point

SAME = 1e-3
"""How far probabilities of the net rebuilt here may be from those recorded before the page says so: another machine,
another precision."""
CHECKED = 64
"""Faces for that, through all test-time views."""
AS_SURE = 5e-4
"""A temperature that is printed as 1.000 changes nothing."""
WEAK = 0.5
"""Accuracy below which a net's doubts are its own more often than the label's."""


# ---- calibration ----


def calibration(case: Case) -> Section | None:
    """Fits the temperature on the validation faces and keeps it beside the weights."""
    part = case.part
    if part.probabilities is None:
        return None
    from fer_lab.evaluation import plots

    fitted = fit(case)
    after = None if fitted is None else rescaled(part, fitted)
    words = (
        f"Accuracy in {plots.BINS} bins of confidence, and the faces in each; {case.faces(part)}. On the grey line "
        "confidence is accuracy; a point below it is too sure."
    )
    blocks: list[Block] = [
        case.picture(plots.reliability(part.labels, part.probabilities, after), "calibration", words)
    ]
    if fitted is None or after is None:
        return Section("Calibration", [*blocks, Text(f"No temperature is fitted: {why_none(case)}.")])
    lean = leaning(fitted)
    blocks.append(
        Text(
            f"Temperature **{fitted.value:.3f}** (Guo et al. 2017): the logarithms of the probabilities divided by it, the one "
            f"number with the least nll on {fitted.faces:,} validation faces; this net is {lean}. No prediction changes. "
            "It is kept beside the weights in `temperature.json`."
        )
    )
    if fitted.is_at_bound:
        blocks.append(
            Warn("The temperature is at its bound: these validation faces are all told right, or none is.")
        )
    return Section("Calibration", [*blocks, before_and_after(case, fitted, after)])


def leaning(fitted: Temperature) -> str:
    if abs(fitted.value - 1) < AS_SURE:
        return "as sure as it should be"
    return "too sure" if fitted.value > 1 else "not sure enough"


def why_none(case: Case) -> str:
    if case.run.folds:
        return "every fold has a net of its own"
    return "there are no validation faces that did not train"


def fit(case: Case) -> Temperature | None:
    """From the predictions that the run recorded; none for the pooled predictions of several nets."""
    from fer_lab.evaluation.calibration import fit_temperature, save_temperature

    validation = case.run.unseen.get("validation")
    if case.run.folds or validation is None or validation.probabilities is None:
        return None
    fitted = fit_temperature(validation.labels, validation.probabilities)
    save_temperature(case.run.folder, fitted)
    return fitted


def rescaled(part: Part, fitted: Temperature) -> NDArray[np.float64]:
    from fer_lab.evaluation.calibration import scaled

    assert part.probabilities is not None
    return scaled(part.probabilities, fitted.value)


def before_and_after(case: Case, fitted: Temperature, after: NDArray[np.float64]) -> Table:
    from fer_lab.evaluation.calibration import figures
    from fer_lab.evaluation.uncertainty import bootstrap_probabilities

    part = case.part
    shown = [("validation, fitted on", fitted.before, fitted.after)]
    note = "Validation figures after the fit flatter."
    if part.usage == "test" and part.probabilities is not None:
        shown.append(("test", figures(part.labels, part.probabilities), figures(part.labels, after)))
        found = bootstrap_probabilities(part.labels, after, case.people(part))
        note = f"95% intervals on the test faces after scaling: nll {bounds(found['nll'], 3, 1)}, ece {bounds(found['ece'], 3, 1)}."
    rows = [
        (f"{usage}: {name}", f"{before[name]:.4f}", f"{now[name]:.4f}")
        for usage, before, now in shown
        for name in ("nll", "brier", "ece")
    ]
    return Table(("", "as trained", "after scaling"), rows, note)


# ---- robustness ----


def robustness(case: Case) -> Section | None:
    part = case.part
    if part.probabilities is None:
        return None
    if case.module is None or case.data is None or not case.asked.faces:
        reason = (
            "faces=0 was asked for" if case.data is not None and case.module is not None else case.missing
        )
        return Section("Robustness", [Text(f"Not measured: {reason}.")])
    import torch

    from fer_lab.evaluation import plots
    from fer_lab.evaluation.robustness import PERTURBATIONS

    chosen = some(len(part), int(case.asked.faces))
    images = torch.from_numpy(np.ascontiguousarray(case.data.cache.images[case.rows(part)[chosen]]))
    clean = predictor(case, "none")(images)
    curves = worse_and_worse(case, images, clean, chosen)
    seen = f"{len(chosen):,} {part.usage} faces of {case.data_name}, the same under every change and predicted without test-time views"
    share = np.bincount(part.labels[chosen]).max() / len(chosen)
    drawn = plots.robustness(curves, images.shape[-1], share)
    sure = int(np.argmax(clean.max(1) * (clean.argmax(1) == part.labels[chosen])))
    return Section(
        "Robustness",
        [
            case.picture(
                drawn,
                "robustness",
                f"Accuracy on faces made worse in one way at a time, with 95% bands; {seen}. Grey: the same faces as they are; "
                f"dotted: always saying their commonest expression ({percent(share)}).",
            ),
            table_of(curves, images.shape[-1]),
            case.picture(
                plots.examples(images[sure : sure + 1], PERTURBATIONS), "worse_faces", "One of these faces as the net sees it."
            ),
            Text(
                "The bars over eyes and mouth lie where FER2013's mean face has them (lines at 36% and 79% of the height): on "
                "crops with a margin, or on tilted faces, they cover something else. Brightness is in photographers' stops, "
                "blur in percent of the side; JPEG is Pillow's."
            ),
            drift(case, images[:CHECKED], chosen[:CHECKED]),
        ],
    )  # fmt: skip


def some(count: int, wanted: int) -> NDArray[np.int64]:
    """Up to `wanted` places of `count`, always the same."""
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


def predictor(case: Case, views: str) -> Callable[[Tensor], NDArray[np.float64]]:
    """Pixels (N, C, S, S) uint8 to probabilities (N, K), averaged over the `views`, in batches on the net's device."""
    import torch

    from fer_lab.data.faces import Faces

    module, data = case.module, case.data
    assert module is not None and data is not None

    def predict(images: Tensor) -> NDArray[np.float64]:
        found = []
        for batch in images.split(2 * data.batch_size):
            nobody = torch.zeros(len(batch), dtype=torch.long, device=module.device)
            shown = data.augment.test_views(batch.to(module.device), views)
            found.append(module.probabilities(Faces(shown, nobody, nobody)).cpu())
        return torch.cat(found).double().numpy()

    return predict


def worse_and_worse(
    case: Case, images: Tensor, clean: NDArray[np.float64], chosen: NDArray[np.int64]
) -> dict[Perturbation, list[Point]]:
    from fer_lab.evaluation.robustness import PERTURBATIONS, curve
    from fer_lab.evaluation.uncertainty import people_on

    assert case.data is not None
    groups = people_on(case.data.index, case.rows(case.part)[chosen])
    labels, predict = case.part.labels[chosen], predictor(case, "none")
    return {kind: curve(predict, images, labels, kind, clean, groups) for kind in PERTURBATIONS}


def table_of(curves: dict[Perturbation, list[Point]], side: int) -> Table:
    """A row for each change; the cells are its strengths, mildest first."""
    width = max(len(points) for points in curves.values()) - 1
    rows = []
    for kind, points in curves.items():
        clean = next(point for point in points if point.strength == 0)
        others = [
            f"{percent(point.accuracy)} ({kind.words(point.strength, side)})"
            for point in points
            if point is not clean
        ]
        mean = float(np.mean([point.accuracy for point in points if point is not clean]))
        rows.append(
            (kind.name, percent(clean.accuracy), percent(mean), *others, *["–"] * (width - len(others)))
        )
    header = ("worse by", "as they are", "mean", *("" for _ in range(width)))
    return Table(header, rows, "Accuracy; the mean is over the strengths in the row.")


def drift(case: Case, images: Tensor, chosen: NDArray[np.int64]) -> Block:
    """Whether the net rebuilt here says what the run recorded of the faces `chosen`."""
    assert case.part.probabilities is not None
    found = predictor(case, str(case.run.config.views))(images)
    largest = float(np.abs(found - case.part.probabilities[chosen]).max())
    words = (
        f"Rebuilt for this page, the net gives {len(chosen)} of these faces the probabilities that the run recorded, to within "
        f"{largest:.1e}."
    )
    return Warn(words) if largest > SAME else Text(words)


# ---- labels ----


def labels(case: Case) -> Section | None:
    """Suspects among the faces that the net has not learned from: validation and test, or every face out of its fold."""
    parts = [part for part in case.run.unseen.values() if part.probabilities is not None]
    if not parts:
        return None
    from fer_lab.evaluation.noise import suspects

    found = suspects(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts if part.probabilities is not None]),
    )
    write_suspects(case, parts, found)
    count = sum(len(part) for part in parts)
    which = "out-of-fold" if case.run.folds else " and ".join(part.usage for part in parts)
    blocks: list[Block] = [
        Text(
            f"**{len(found.rows):,} of {count:,}** {which} faces are suspects: the net, which has not learned from them, is as sure "
            "of another expression as it is of that expression's own faces (confident learning, Northcutt et al. 2021). "
            f"The estimated share of labels that are wrong is {percent(found.share)}; a net that is often wrong makes it too "
            "high. A suspect may also be a hard face: look before you drop one. All are in `suspects.csv`, the least credible first."
        )
    ]
    right = float(np.mean(np.concatenate([part.predicted == part.labels for part in parts])))
    if right < WEAK:
        blocks.append(
            Warn(f"This net is right of {percent(right)} of them only: its doubts say little about labels.")
        )
    shown = min(len(found.rows), int(case.asked.suspects))
    if shown and case.data is not None:
        blocks.append(sheet(case, parts, found, shown))
    return Section("Label suspects", blocks)


def places(parts: list[Part]) -> list[tuple[Part, int]]:
    return [(part, row) for part in parts for row in range(len(part))]


def write_suspects(case: Case, parts: list[Part], found: Suspects) -> None:
    where, classes = places(parts), parts[0].classes
    with (case.folder / "suspects.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "usage", "label", "suggested", "margin"])
        for row, given, suggested, margin in zip(
            found.rows, found.given, found.suggested, found.margins, strict=True
        ):
            part, place = where[row]
            table.writerow(
                [part.names[place], part.usage, classes[given], classes[suggested], f"{margin:.4f}"]
            )


def sheet(case: Case, parts: list[Part], found: Suspects, shown: int) -> Block:
    from fer_lab.evaluation import plots

    assert case.data is not None
    rows = np.concatenate([case.rows(part) for part in parts])[found.rows[:shown]]
    classes = parts[0].classes
    lines = [
        (classes[given], classes[suggested])
        for given, suggested in zip(found.given[:shown], found.suggested[:shown], strict=True)
    ]
    words = (
        f"The {shown} least credible labels of {sum(map(len, parts)):,} {' and '.join(part.usage for part in parts)} faces of "
        f"{case.data_name}: as labelled, and what the net would say."
    )
    figure = plots.contact_sheet(case.data.cache.images[rows], lines, words=("label", "net"))
    return case.picture(figure, "suspects", words)
