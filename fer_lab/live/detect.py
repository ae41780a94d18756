"""Where the faces of a frame are: OpenCV's cascades, a YuNet file of the user's, or the whole picture as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.crop import DETECTION_SIDE, SCALE_STEP, cascade
from fer_lab.data.faces import DataError
from fer_lab.data.images import grey
from fer_lab.live.eyes import find_eyes
from fer_lab.live.faces import Face, LiveError, Pixels

if TYPE_CHECKING:
    import cv2

CHOICES = "haar, none, yunet:FILE"
PICTURE_NEIGHBOURS = (5, 3)
"""Overlapping hits that make a face; fewer are asked for only where that finds none. Training (data.crop=haar) goes
down to one, as there is a face in every of its pictures; here that would find faces in wallpaper."""

VIDEO_NEIGHBOURS = (5,)
SAME_FACE = 0.5
"""Two boxes of a frame that overlap by more (intersection over union) hold the same face."""

MOVED_FACE = 0.25
"""So much a box overlaps at least with that of the same face a frame ago."""

YUNET_SIDE = 640
YUNET_SCORE = 0.6


class Detector(ABC):
    """Finds faces, the largest first; one call at a time in a process, as OpenCV's cascades are shared. Eyes are looked
    for only where `eyes` is set: it costs about as much as following a face does."""

    eyes: bool = False

    @abstractmethod
    def __call__(self, pixels: Pixels) -> list[Face]:
        """Every face of a frame."""

    def near(self, pixels: Pixels, face: Face) -> Face | None:
        """The face that was there a frame ago, looked for in its neighbourhood alone; None where it is lost."""
        left, top, right, bottom = region(face, pixels)
        found = self(pixels[top:bottom, left:right])
        return closest(face, [moved(one, left, top) for one in found])

    def reset(self) -> None:  # noqa: B027  (most have nothing to forget)
        """Forget the source so far; another one follows."""


class Whole(Detector):
    """The picture is the face: cropped by somebody else."""

    def near(self, pixels: Pixels, face: Face) -> Face | None:
        return self(pixels)[0]

    def __call__(self, pixels: Pixels) -> list[Face]:
        height, width = pixels.shape[:2]
        return [Face((0, 0, width, height))]


class Haar(Detector):
    """OpenCV's frontal cascade, on the same copy of the picture as the crops of training (fer_lab.data.crop)."""

    def __init__(self, neighbours: Sequence[int] = PICTURE_NEIGHBOURS, eyes: bool = False) -> None:
        self.finder, self.neighbours, self.eyes = cascade(), tuple(neighbours), eyes

    def __call__(self, pixels: Pixels) -> list[Face]:
        plain = grey(pixels)
        copy, shrink = shrunk(plain, DETECTION_SIDE)
        for neighbours in self.neighbours:
            found = self._found(copy, shrink, neighbours)
            if found:
                return [self._with_eyes(plain, face) for face in found]
        return []

    def near(self, pixels: Pixels, face: Face) -> Face | None:
        """For faces of about its size, in the resolution of a whole look: the boxes of coarser ones jump about."""
        shrink = max(1.0, max(pixels.shape[:2]) / DETECTION_SIDE)
        left, top, right, bottom = region(face, pixels)
        plain = grey(pixels[top:bottom, left:right])
        copy, shrink = shrunk(plain, round(max(plain.shape) / shrink))
        side = max(face.box[2:]) / shrink
        found = self._found(copy, shrink, self.neighbours[0], (round(side / SIZES), round(side * SIZES)))
        best = closest(face, [moved(one, left, top) for one in found])
        if best is None:
            return None
        return moved(self._with_eyes(plain, moved(best, -left, -top)), left, top)

    def _found(
        self, copy: NDArray[np.uint8], shrink: float, neighbours: int, sizes: tuple[int, int] = (0, 0)
    ) -> list[Face]:
        boxes, hits = self.finder.detectMultiScale2(
            copy,
            scaleFactor=SCALE_STEP,
            minNeighbors=neighbours,
            minSize=(sizes[0],) * 2,
            maxSize=(sizes[1],) * 2,
        )
        faces = [
            Face((round(x * shrink), round(y * shrink), round(w * shrink), round(h * shrink)), float(score))
            for (x, y, w, h), score in zip(np.asarray(boxes).tolist(), hits, strict=True)
        ]
        return largest_first(faces)

    def _with_eyes(self, plain: NDArray[np.uint8], face: Face) -> Face:
        return face._replace(eyes=find_eyes(plain, face.box)) if self.eyes else face


class YuNet(Detector):
    """OpenCV's small net for faces and eyes (face_detection_yunet_*.onnx of opencv_zoo), from a file of the user's."""

    def __init__(self, file: str, eyes: bool = True) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise LiveError(
                f"detector=yunet:{file}: there is no such file; get face_detection_yunet_2023mar.onnx of opencv_zoo, or use haar"
            )
        cascade()  # says what to install, and keeps OpenCV on one thread
        import cv2

        self.eyes = eyes
        try:
            self.net: cv2.FaceDetectorYN = cv2.FaceDetectorYN.create(str(path), "", (320, 320), YUNET_SCORE)
        except (cv2.error, SystemError) as error:
            raise LiveError(
                f"detector=yunet:{file} is no YuNet that OpenCV {cv2.__version__} reads; "
                "get face_detection_yunet_2023mar.onnx of opencv_zoo, or use haar"
            ) from error

    def __call__(self, pixels: Pixels) -> list[Face]:
        copy, shrink = shrunk(pixels, YUNET_SIDE)
        self.net.setInputSize((copy.shape[1], copy.shape[0]))
        _, rows = self.net.detect(np.ascontiguousarray(copy[..., ::-1]))
        return largest_first(
            [face for row in ([] if rows is None else rows) if (face := self._face(row, shrink, pixels))]
        )

    def _face(self, row: NDArray[np.float32], shrink: float, pixels: Pixels) -> Face | None:
        """`row`: box, then right eye, left eye, nose and mouth corners of the person, then the score."""
        left, top, width, height, *points = (row[:8] * shrink).tolist()
        box = (round(left), round(top), round(width), round(height))
        if not (
            0 <= left + width / 2 < pixels.shape[1]
            and 0 <= top + height / 2 < pixels.shape[0]
            and min(box[2:]) > 0
        ):
            return None
        first, second = sorted(((points[0], points[1]), (points[2], points[3])))
        return Face(box, float(row[14]), (first, second) if self.eyes else None)


REGION = 1.6
"""Boxes that the neighbourhood is wide where a face is looked for again."""

SIZES = 1.2
"""So many times larger or smaller a face may have become from one frame to the next."""

CUT = 40.0
"""Mean change of grey levels, of 255, from which on a frame is another scene."""


class Following(Detector):
    """Looks at a whole frame every `search` frames, and between those only around the faces of the frame before.

    A face lost there, another size of the frames or another scene make it look at the whole at once, and where faces are
    missing then, at the next one too. While there is no face at all, it looks at each: whoever is told of none may trust it.
    """

    def __init__(self, detector: Detector, search: int = 15) -> None:
        self.detector, self.search = detector, search
        self.reset()

    @property
    def eyes(self) -> bool:
        return self.detector.eyes

    @eyes.setter
    def eyes(self, wanted: bool) -> None:
        self.detector.eyes = wanted

    def reset(self) -> None:
        self.faces: list[Face] = []
        self.since, self.gap = 0, 0
        self.sketch: NDArray[np.uint8] | None = None

    def __call__(self, pixels: Pixels) -> list[Face]:
        self.since += 1
        if self._new_scene(pixels) or self.since >= self.gap:
            return self._whole(pixels)
        found = [self.detector.near(pixels, face) for face in self.faces]
        kept = [face for face in found if face is not None]
        if len(kept) < len(found) or doubled(kept):
            return self._whole(pixels)
        self.faces = largest_first(kept)
        return self.faces

    def _whole(self, pixels: Pixels) -> list[Face]:
        before, self.faces = len(self.faces), self.detector(pixels)
        self.gap = self.search if self.faces and len(self.faces) >= before else 1
        self.since = 0
        return self.faces

    def _new_scene(self, pixels: Pixels) -> bool:
        """Compares every 16th pixel, green only."""
        before, self.sketch = self.sketch, pixels[8::16, 8::16, 1].copy()
        if before is None or before.shape != self.sketch.shape:
            return True
        return self.sketch.size > 0 and bool(np.abs(before.astype(np.int16) - self.sketch).mean() > CUT)


def make(spec: str, video: bool = False, eyes: bool = False) -> Detector:
    """The detector that a user names: haar, none or yunet:FILE. For a `video`, haar takes only sure hits: the next frame
    is another chance. Raises LiveError."""
    kind, _, file = spec.partition(":")
    try:
        if spec == "none":
            return Whole()
        if spec == "haar":
            return Haar(VIDEO_NEIGHBOURS if video else PICTURE_NEIGHBOURS, eyes)
        if kind == "yunet" and file:
            return YuNet(file, eyes)
    except DataError as error:
        raise LiveError(without_extra(error, spec)) from None
    raise LiveError(f"detector={spec!r}; choices: {CHOICES}")


def without_extra(error: DataError, spec: str) -> str:
    return (
        str(error).replace("data.crop=haar", f"detector={spec}").replace("fer_lab[faces]", "'fer_lab[live]'")
    )


def shrunk(pixels: Any, side: int) -> tuple[Any, float]:
    """A copy whose longer side is at most `side`, as fer_lab.data.crop makes it, and how much smaller it is."""
    import cv2

    shrink = max(1.0, max(pixels.shape[:2]) / side)
    if shrink == 1:
        return np.ascontiguousarray(pixels), shrink
    height, width = (max(1, round(length / shrink)) for length in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), shrink


def largest_first(faces: list[Face]) -> list[Face]:
    """Of equal ones the topmost, then leftmost: the order of fer_lab.data.crop.largest_face."""
    return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box[1], face.box[0]))


def region(face: Face, pixels: Pixels) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the neighbourhood, inside the picture."""
    left, top, width, height = face.box
    wide, high = round(width * (REGION - 1) / 2), round(height * (REGION - 1) / 2)
    rows, columns = pixels.shape[:2]
    return (
        max(0, left - wide),
        max(0, top - high),
        min(columns, left + width + wide),
        min(rows, top + height + high),
    )


def moved(face: Face, across: int, down: int) -> Face:
    left, top, width, height = face.box
    here = Face((left + across, top + down, width, height), face.score)
    if face.eyes is None:
        return here
    one, other = ((x + across, y + down) for x, y in face.eyes)
    return here._replace(eyes=(one, other))


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / (one[2] * one[3] + other[2] * other[3] - across * down)


def closest(face: Face, found: Sequence[Face]) -> Face | None:
    """Of the faces found the one that overlaps most with this, if any does so enough."""
    best = max(found, key=lambda one: overlap(face.box, one.box), default=None)
    return best if best is not None and overlap(face.box, best.box) >= MOVED_FACE else None


def doubled(faces: Sequence[Face]) -> bool:
    """Whether two of the faces are the same."""
    return any(
        overlap(one.box, other.box) > SAME_FACE for place, one in enumerate(faces) for other in faces[:place]
    )
