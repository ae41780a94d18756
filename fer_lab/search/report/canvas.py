"""How the figures of a sweep look: a white page, the result as title, colours for every kind of colour vision."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from fer_lab.search.report.trials import Search

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#B8B8B8", "#333333"
BRANCHES = (BLUE, GREEN, RED, "#CC79A7", "#56B4E9", "#8A6D00")
SHADES = LinearSegmentedColormap.from_list("scores", ["#DCE3EA", "#9CC4DE", BLUE, "#062A4A"])
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#EEEEEE",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def page(width: float, height: float, title: str) -> Figure:
    """A bare Figure in inches: unknown to pyplot, so it is freed with its last reference."""
    figure = Figure(figsize=(width, height), layout="constrained")
    text = textwrap.fill(title, int(width * 9.4), break_on_hyphens=False)
    figure.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def ring(axes: Axes, x: float, y: float) -> None:
    """Round the best trial."""
    look: Any = {"markerfacecolor": "none", "markeredgecolor": ORANGE, "markeredgewidth": 2}
    axes.plot(x, y, "o", markersize=11, clip_on=False, zorder=5, **look)


def shades(search: Search) -> LinearSegmentedColormap:
    """Dark is good."""
    return SHADES if search.maximize else SHADES.reversed()


def norm(search: Search) -> Normalize:
    """Colours for the range of scores that counts, see Search.span."""
    return Normalize(*search.span, clip=True)
