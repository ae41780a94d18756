"""What each figure shows: its axes, words and numbers, and that drawing leaves nothing behind."""

import gc
import math
import weakref
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from fer_lab import figures
from fer_lab.data.faces import EXPRESSIONS
from fer_lab.evaluation.metrics import emotion_metrics

THREE = EXPRESSIONS[:3]
HISTORY = {
    "train/loss": [(0, 1.9), (1, 1.2), (2, 0.8)],
    "val/loss": [(0, 1.8), (1, 1.4), (2, 1.5)],
    "train/accuracy": [(0, 0.2), (1, 0.5), (2, 0.7)],
    "val/accuracy": [(0, 0.25), (1, 0.5), (2, 0.45)],
    "lr": [(0, 0.1)],
}
COUNTS = np.array([[8, 2, 0], [1, 5, 4], [0, 0, 0]])
TABLE = {
    "neutral": {"precision": 0.5, "recall": 1.0, "f1": 0.667, "support": 12},
    "fear": {"precision": math.nan, "recall": 0.0, "f1": 0.0, "support": 3456},
}


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def faces(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, 12, 10), dtype=np.uint8)


def test_curves_mark_the_best_epoch() -> None:
    figure = figures.curves(HISTORY)
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [
        ("epoch", "loss (nats)"),
        ("epoch", "accuracy"),
    ]
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["train", "validation", "best epoch (1)"]
    validation = next(line for line in figure.axes[1].lines if line.get_label() == "validation")
    assert validation.get_xydata().tolist() == [[0, 0.25], [1, 0.5], [2, 0.45]]
    assert title(figure) == "Best epoch 1 of 3: validation accuracy 50.0%"


def test_curves_of_the_epoch_that_was_kept() -> None:
    assert title(figures.curves(HISTORY, best=2)) == "Best epoch 2 of 3: validation accuracy 45.0%"


def test_curves_of_what_there_is() -> None:
    losses = {name.replace("/", "_"): points for name, points in HISTORY.items() if "loss" in name}
    figure = figures.curves(losses | {"val_loss": [(0, 1.8), (1, math.nan), (2, 1.5)]})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)"]
    assert title(figure) == "Best epoch 2 of 3: validation loss 1.500"
    assert title(figures.curves({})) == "0 epochs, none validated"
    assert title(figures.curves({"train/loss": [(0, 1.0)]})) == "1 epochs, none validated"


def test_confusion_matrix_names_its_axes_and_cells() -> None:
    figure = figures.confusion_matrix(COUNTS, THREE)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(THREE)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(THREE)
    assert len(figure.axes) == 2  # the matrix and its scale
    assert words(axes) == [
        *("80%\n8", "20%\n2", "0%\n0"),
        *("10%\n1", "50%\n5", "40%\n4"),
        *("–\n0", "–\n0", "–\n0"),
    ]
    fourth = axes.texts[5]
    assert fourth.get_position() == (2, 1)  # x is predicted, y (downwards) is true
    assert axes.yaxis_inverted()
    assert title(figure) == "65.0% of 20 faces right\n40% of happiness taken for sadness"
    assert title(figures.confusion_matrix(np.eye(3, dtype=int), THREE, "All right")) == "All right"


def test_per_class_bars_with_support() -> None:
    figure = figures.per_class(TABLE)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["neutral\n(12)", "fear\n(3,456)"]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0, 1, 0, 0.667, 0]  # type: ignore[attr-defined]
    assert words(axes) == [".50", "–", "1.00", ".00", ".67", ".00"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("expression (labelled faces)", "score")
    assert title(figure) == "Macro F1 0.33: from fear 0.00 to neutral 0.67"


@pytest.mark.parametrize("channels", [1, 3])
def test_face_sheet_shows_the_pixels_it_was_given(channels: int) -> None:
    images = faces(5, channels)
    for given in (images, torch.from_numpy(images), images.astype(np.float32) / 255):
        (axes,) = figures.face_sheet(given, ["fear", "anger", "a", "b", "c"], columns=2).axes
        assert words(axes) == ["fear", "anger", "a", "b", "c"]
        for shown, image in zip(axes.images, images, strict=True):
            expected = np.broadcast_to(image.transpose(1, 2, 0), (12, 10, 3))
            np.testing.assert_array_equal(shown.get_array(), expected)
    places = [tuple(np.round(shown.get_extent(), 2)) for shown in axes.images]
    assert places[0][2:] == places[1][2:] != places[2][2:] and places[0][:2] == places[2][:2] == places[4][:2]


def test_face_sheet_refuses_what_is_not_a_batch_of_faces() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 12, 10, 3\); expected \(N, C, H, W\) with 1 or 3"):
        figures.face_sheet(np.zeros((4, 12, 10, 3)), [""] * 4)


def test_mistakes_are_the_worst_first() -> None:
    images = faces(4)
    p = np.array([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.002, 0.998, 0], [0.9, 0.05, 0.05]])
    figure = figures.mistakes(images, [0, 1, 0, 0], p.argmax(1), p, THREE, inference_ms=1.234, limit=2)
    assert title(figure).replace("\n", " ") == "3 of 4 faces wrong, the 2 worst · inference 1.23 ms per face"
    assert [words(axes)[:2] for axes in figure.axes] == [
        ["true: neutral <1%", "predicted: happiness 100%"],
        ["true: neutral 10%", "predicted: happiness 80%"],
    ]
    second = figure.axes[1]
    assert words(second)[2:] == list(THREE)
    widths = [bar.get_width() for bar in second.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.array(widths) / sum(widths), p[0])
    colours = [to_hex(bar.get_facecolor()).upper() for bar in second.patches]
    assert colours == [figures.BLUE, figures.RED, figures.GREY]
    np.testing.assert_array_equal(second.images[0].get_array()[..., 0], images[0, 0])


def test_no_mistakes_is_said() -> None:
    figure = figures.mistakes(faces(2), [0, 1], [0, 1], np.eye(3)[:2], THREE)
    assert title(figure) == "No mistake among 2 faces" and not figure.axes


def test_reliability_states_the_calibration_error_of_the_metrics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        3 * torch.randn(300, 3, generator=generator),
        torch.randint(3, (300,), generator=generator),
    )
    confidence, predicted = logits.softmax(1).max(1)
    figure = figures.reliability(confidence, predicted == labels)
    error = emotion_metrics(logits, labels, THREE)["ece"]
    assert title(figure).startswith(f"Calibration error {error:.1%}: overconfident\n(mean confidence ")
    upper, lower = figure.axes
    assert upper.get_ylabel() == "accuracy" and lower.get_xlabel().startswith("confidence")
    assert sum(bar.get_height() for bar in lower.patches) == 300  # type: ignore[attr-defined]


def every_figure() -> list[Figure]:
    p = np.full((6, 3), 1 / 3)
    return [
        figures.curves(HISTORY),
        figures.confusion_matrix(COUNTS, THREE),
        figures.per_class(TABLE),
        figures.face_sheet(faces(6, 3), ["x"] * 6),
        figures.mistakes(faces(6), [0] * 6, [1] * 6, p, THREE, 2.0),
        figures.reliability([0.9, 1.0], [True, False]),
    ]


def test_words_stay_on_the_page_and_files_are_whole(tmp_path: Path) -> None:
    for place, figure in enumerate(every_figure()):
        path = figures.save(figure, tmp_path / "deep" / f"{place}.png")
        with Image.open(path) as image:
            image.load()
            assert image.size == pytest.approx(figure.get_size_inches() * figures.DOTS_PER_INCH, abs=1)
            assert len(set(image.convert("L").tobytes())) > 2
        figure.dpi = figures.DOTS_PER_INCH
        outside = figure.get_tightbbox().extents - np.array([0, 0, *figure.get_size_inches()])
        assert (outside[:2] >= 0).all() and (outside[2:] <= 0).all()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        f"{place}.png" for place in range(6)
    ]


def test_drawing_leaves_no_figure_behind(tmp_path: Path) -> None:
    made = every_figure()
    for figure in made:
        figures.save(figure, tmp_path / "figure.png")
    assert plt.get_fignums() == []
    alive = [weakref.ref(figure) for figure in made]
    del made, figure
    gc.collect()
    assert [one for one in alive if one() is not None] == []
