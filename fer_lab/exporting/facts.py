"""What every exported file says about itself, and how far it may be from the net that was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ALLOWED = {"float32": 1e-4, "tf32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""By the precision of a file: how far its probabilities may be from the trained net's, as a share of how far the
trained net's own differ from face to face. A net that says nearly the same of every face is easily mistaken for another."""
LEAST_SPREAD = 0.05
"""Below it the rounding of the probabilities themselves is too large a share."""


class ExportError(RuntimeError):
    """An export that is not the trained net; nothing was written. The text has the figure."""


class CannotExport(ValueError):
    """A format or a precision that this net does not have; the text names the layer. Nothing was written."""


class FileError(ValueError):
    """An exported file that is missing, broken, of another maker or of another kind; the text says what to do."""


@dataclass(frozen=True)
class Facts:
    """What a user of the file has to know: pixels (batch, channels, size, size), uint8 0..255 (three channels: RGB),
    become probabilities (batch, len(classes)) in the order of `classes`, averaged over the test-time `views`. Where
    `affect`, valence and arousal in -1..1 are two more columns, or all where there are no `classes`.

    Preprocessing is inside, but for the square with the face, that a picture is cut to before it has this size:
    `face_crop` and its `margin` are data.crop and data.margin of the training (fer_lab.data.crop); of whole pictures
    (none) and the data set's own boxes (box) the margin is what a detector's square lacks to them, measured on so many
    that were `framed` (fer_lab.framing) and unknown where that is 0. `checkpoint` is the SHA-256 of the weights that the run kept, `commit` that of the code
    which trained it, `versions` those of the packages that exported it. The probabilities are as the net was trained;
    where a report fitted a `temperature`, their logarithms divided by it, through a softmax again, are calibrated.
    """

    run: str
    net: str
    classes: tuple[str, ...]
    size: int
    channels: int
    affect: bool = False
    views: str = "none"
    crop: int | None = None
    precision: str = "float32"
    commit: str = ""
    checkpoint: str = ""
    versions: Mapping[str, str] | None = None
    temperature: float | None = None
    face_crop: str = "none"
    margin: float = 0.0
    framed: int = 0

    def as_text(self) -> dict[str, str]:
        """Strings alone, for ONNX keeps nothing else: what is no string is JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def of_text(cls, kept: Mapping[str, str], place: str) -> Facts:
        """What `as_text` made. Raises FileError, naming `place`, where it is something else."""
        strings = {one.name for one in fields(cls) if one.type == "str"}
        try:
            plain = {name: text if name in strings else json.loads(text) for name, text in kept.items()}
        except ValueError as error:
            raise FileError(f"{place} has metadata that no fer_lab.export wrote: {error}") from error
        return cls.of(plain, place)

    @classmethod
    def of(cls, kept: Mapping[str, Any], place: str) -> Facts:
        """Out of a JSON object read from `place`; what this version does not know is left out. Raises FileError."""
        known = {one.name: kept[one.name] for one in fields(cls) if one.name in kept}
        try:
            return cls(**{**known, "classes": tuple(known["classes"])})
        except (KeyError, TypeError) as error:
            raise FileError(
                f"{place} does not say which faces it takes and what it tells ({error}); python -m fer_lab.export run=ID "
                "writes files that do"
            ) from error


class Difference(NamedTuple):
    """How far a file is from the trained net in its predictions: `largest` over so many faces, between which the
    trained net's own differ by up to `spread`; on `agreeing` of them the same expression comes first, or, of a net that
    tells none, valence and arousal lie in the same quadrant."""

    largest: float
    spread: float
    agreeing: int
    faces: int

    def refuse_above(self, allowed: float, name: str) -> None:
        """`allowed`: as in ALLOWED. Raises ExportError; a difference that is no number is above everything."""
        limit = allowed * max(self.spread, LEAST_SPREAD)
        if not self.largest <= limit:
            raise ExportError(
                f"{name} differs from the trained net by {self.largest:.3g} in probability over {self.faces} real faces "
                f"(allowed {limit:.3g}; they differ among themselves by {self.spread:.3g}); the same expression comes "
                f"first on {self.agreeing} of them; nothing was written"
            )


def compare(found: Tensor, expected: Tensor, classes: int) -> Difference:
    """Both (B, O) predictions, of which the first `classes` columns are probabilities."""
    if found.shape != expected.shape:
        raise ExportError(
            f"predictions are {tuple(found.shape)}, the trained net's {tuple(expected.shape)}; nothing was written"
        )

    def said(of: Tensor) -> Tensor:
        return of[:, :classes].argmax(1, keepdim=True) if classes else of.sign()

    return Difference(
        largest=float((found.double() - expected.double()).abs().max()),
        spread=float((expected.max(0).values - expected.min(0).values).max()),
        agreeing=int((said(found) == said(expected)).all(1).sum()),
        faces=len(expected),
    )
