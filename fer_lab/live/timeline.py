"""What was told over the time of a video: gathered in bins that double their width, then drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.live.drawing import COLOURS, TEAL
from fer_lab.live.faces import Net, Seen
from fer_lab.live.rows import in_one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 512
NARROWEST = 1 / 32
"""Seconds of a bin at first."""

FULL = 3
"""Frames that a bin holds on average when it is drawn, at least."""

GREY, INK = "#B8B8B8", "#333333"
VALENCE, AROUSAL = "#009E73", "#CC79A7"


class Line(NamedTuple):
    """`edges` (N + 1,) in seconds; means over the frames of each bin: `faces` (N,) in a frame, `values` (N, K) what was
    told of the faces, nan where there were none. Bins without frames have the faces of the bin before, the first ones none."""

    edges: NDArray[np.float64]
    faces: NDArray[np.float64]
    values: NDArray[np.float64]
    mean: NDArray[np.float64]


class Timeline:
    """Of one video, however long, in the memory of BINS bins. In a frame with several faces their mean counts."""

    def __init__(self, net: Net) -> None:
        self.net, self.width = net, NARROWEST
        self.sums = np.zeros((BINS, len(net.classes) + 2 * net.affect))
        self.told, self.frames, self.faces = (np.zeros(BINS) for _ in range(3))
        self.most = 0

    def add(self, seen: Seen) -> None:
        if seen.frame.time_s is None or seen.frame.fault:
            return
        while seen.frame.time_s >= BINS * self.width:
            self._double()
        place = max(0, int(seen.frame.time_s / self.width))
        self.frames[place] += 1
        self.faces[place] += len(seen.faces)
        self.most = max(self.most, len(seen.faces))
        if seen.faces:
            every = [
                [*told.probabilities, *(() if told.affect is None else told.affect)] for told in seen.faces
            ]
            self.sums[place] += np.mean(every, axis=0)
            self.told[place] += 1

    def _double(self) -> None:
        self.width *= 2
        for name in ("sums", "told", "frames", "faces"):
            setattr(self, name, doubled(getattr(self, name)))

    def line(self) -> Line:
        """The bins from the first to the last with a frame, wide enough to hold some frames each."""
        width, bins = self.width, [self.sums, self.told, self.frames, self.faces]
        while (used := int(np.flatnonzero(bins[2])[-1]) + 1) > 1 and bins[2].sum() < FULL * used:
            width, bins = width * 2, [doubled(one) for one in bins]
        sums, told, frames, faces = (one[:used] for one in bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            values: NDArray[np.float64] = sums / told[:, None]
            means: NDArray[np.float64] = faces / np.maximum(frames, 1)
        for place in np.flatnonzero(frames == 0):  # a still picture of a video with uneven times
            if place:
                values[place], means[place] = values[place - 1], means[place - 1]
        edges = np.arange(used + 1, dtype=np.float64) * width
        return Line(edges, means, values, sums.sum(0) / max(told.sum(), 1))


def doubled(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairs of bins as one; the second half is free."""
    pairs = bins.reshape(len(bins) // 2, 2, *bins.shape[1:]).sum(1)
    return np.concatenate([pairs, np.zeros_like(pairs)])


def figure(timeline: Timeline, name: str) -> Figure | None:
    """Stacked probabilities, valence and arousal, and the number of faces; None where no frame had a face."""
    from matplotlib import rc_context

    if not timeline.told.any():
        return None
    with rc_context({"text.parse_math": False}):  # a $ in the name of a video or a class is a $
        return drawn_figure(timeline, timeline.line(), name)


def drawn_figure(timeline: Timeline, line: Line, name: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    net = timeline.net
    parts = [3.0] * bool(net.classes) + [1.6] * net.affect + [0.6]
    drawn = Figure(figsize=(10, 1.2 + sum(parts)), layout=ConstrainedLayoutEngine(h_pad=0.06, hspace=0.04))
    drawn.suptitle(title(timeline, line, name), x=0.01, ha="left", fontsize=12, color=INK)
    axes = drawn.subplots(len(parts), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": parts})[
        :, 0
    ]
    rest = list(axes)
    if net.classes:
        draw_shares(rest.pop(0), line, net.classes)
    if net.affect:
        draw_affect(rest.pop(0), line, len(net.classes))
    draw_faces(rest[0], line, timeline.most)
    return drawn


def title(timeline: Timeline, line: Line, name: str) -> str:
    """The result: what was told most."""
    classes, name = timeline.net.classes, in_one_line(name)
    seen = timeline.told.sum() / timeline.frames.sum()
    where = "in each frame" if seen > 0.995 else f"in {seen:.0%} of the frames"
    if not classes:
        return f"{name}: a face {where}, mean valence {line.mean[0]:+.2f}, arousal {line.mean[1]:+.2f}"
    best = int(line.mean[: len(classes)].argmax())
    return f"{name}: a face {where}, above all {classes[best]} ({line.mean[best]:.0%} on average)"


def draw_shares(axes: Axes, line: Line, classes: Sequence[str]) -> None:
    """The largest in the mean lies at the bottom; frames without a face stay white."""
    from matplotlib.ticker import PercentFormatter

    order = np.argsort(-line.mean[: len(classes)], kind="stable")
    low = np.zeros(len(line.faces))
    for place in order:
        high = low + line.values[:, place]
        colour = [part / 255 for part in COLOURS.get(classes[place], TEAL)]
        label = f"{classes[place]}  {line.mean[place]:.0%}"
        axes.fill_between(
            line.edges, stepped(low), stepped(high), step="post", color=colour, linewidth=0, label=label
        )
        low = high
    quiet(axes, "probability")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=9,
        title="mean",
    )


def draw_affect(axes: Axes, line: Line, first: int) -> None:
    for place, (name, colour) in enumerate((("valence", VALENCE), ("arousal", AROUSAL)), start=first):
        label = f"{name}  {line.mean[place]:+.2f}"
        axes.step(
            line.edges, stepped(line.values[:, place]), where="post", color=colour, linewidth=1.6, label=label
        )
    quiet(axes, "-1 to 1")
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_ylim(-1, 1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def draw_faces(axes: Axes, line: Line, most: int) -> None:
    axes.fill_between(line.edges, 0, stepped(line.faces), step="post", color=GREY, linewidth=0)
    quiet(axes, "faces")
    axes.set_ylim(0, max(1, most) * 1.05)
    axes.set_yticks([0, max(1, most)])
    axes.set_xlim(0, line.edges[-1])
    axes.set_xlabel("seconds")


def stepped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last value once more: a step ends at the last edge."""
    return np.append(values, values[-1:])


def quiet(axes: Axes, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_ylabel(label, color=INK)
