"""A window that shows frames and tells which keys were pressed. tkinter: the headless OpenCV has none."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from PIL import Image

from fer_lab.live.faces import LiveError, Pixels

GROUND, BAR, KEY, WORDS, FAINT, SIGNAL = "#101216", "#1a1d23", "#343a45", "#e8eaee", "#9aa1ad", "#ff5a52"
SHARE = 0.85
"""Of the screen: as large as the window opens at most."""

NARROWEST = 640

FONT = ("DejaVu Sans", "Segoe UI", "Helvetica Neue", "Liberation Sans")


class Window:
    """Frames above a bar with a line of words and the `keys`, (key, what it does); it may be drawn larger or smaller.

    Used in a `with`, by one thread. Raises LiveError where no window can be opened.
    """

    def __init__(self, title: str, keys: Sequence[tuple[str, str]]) -> None:
        self.root, self.photo_of = opened()
        self.photo: Any = None
        self.waiting: list[str] = []
        self.root.withdraw()  # until there is something to see
        self.root.title(title)
        self.root.configure(background=GROUND)
        self.root.protocol("WM_DELETE_WINDOW", lambda: self.waiting.append("q"))
        self.root.bind("<Key>", lambda event: self.waiting.append(event.keysym.lower()))
        self.dot, self.words = self._bar(keys)
        self.canvas: Any = None

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.root.destroy()

    def _bar(self, keys: Sequence[tuple[str, str]]) -> tuple[Any, Any]:
        """The dot that is lit while something is recorded, and the words beside it."""
        import tkinter
        from tkinter import font

        known = set(font.families(self.root))
        family = next((name for name in FONT if name in known), "TkDefaultFont")
        plain, strong = (family, 10), (family, 9, "bold")
        bar = tkinter.Frame(self.root, background=BAR, padx=12, pady=8)
        bar.pack(side="bottom", fill="x")
        for key, does in reversed(keys):
            told = tkinter.Label(bar, text=does, font=plain, background=BAR, foreground=FAINT)
            told.pack(side="right", padx=(4, 0))
            cap = tkinter.Label(bar, text=key, font=strong, background=KEY, foreground=WORDS, padx=6, pady=1)
            cap.pack(side="right", padx=(14, 0))
        dot = tkinter.Label(bar, text="●", font=plain, background=BAR, foreground=BAR)
        dot.pack(side="left", padx=(0, 6))
        words = tkinter.Label(bar, font=plain, background=BAR, foreground=WORDS, anchor="w")
        words.pack(side="left", fill="x", expand=True)
        return dot, words

    def scale(self, pixels: Pixels) -> float:
        """By how much a frame fits into the window; the first one opens it."""
        if self.canvas is None:
            self._open(pixels)
        height, width = pixels.shape[:2]
        return min(self.canvas.winfo_width() / width, self.canvas.winfo_height() / height)

    def show(self, pixels: Pixels, words: str, signal: bool = False) -> None:
        """A frame that fits; `signal` lights the dot before the words."""
        image = Image.fromarray(pixels)
        if self.photo is None or image.size != (self.photo.width(), self.photo.height()):
            self.photo = self.photo_of(image, master=self.root)
            self.canvas.itemconfigure("frame", image=self.photo)
        else:
            self.photo.paste(image)
        self.canvas.coords("frame", self.canvas.winfo_width() // 2, self.canvas.winfo_height() // 2)
        self.words.configure(text=words)
        self.dot.configure(foreground=SIGNAL if signal else BAR)

    def pressed(self) -> list[str]:
        """The keys since the last call, by their X names in lower case (q, space, escape …); q, too, where the window was
        closed, and `resized` where it was."""
        self.root.update()
        keys, self.waiting = self.waiting, []
        return keys

    def title(self, words: str) -> None:
        self.root.title(words)

    def _open(self, pixels: Pixels) -> None:
        """As large as the frame, but not larger than the screen, nor too narrow for the bar."""
        import tkinter

        height, width = pixels.shape[:2]
        screen = self.root.winfo_screenwidth(), self.root.winfo_screenheight()
        share = min(max(1.0, NARROWEST / width), SHARE * screen[0] / width, SHARE * screen[1] / height)
        size = round(width * share), round(height * share)
        self.canvas = tkinter.Canvas(
            self.root, width=size[0], height=size[1], background=GROUND, highlightthickness=0
        )
        self.canvas.create_image(0, 0, tags="frame")
        self.canvas.pack(fill="both", expand=True)
        self.canvas.bind("<Configure>", lambda _: self.waiting.append("resized"))
        self.root.geometry(
            f"{size[0]}x{size[1] + self.words.master.winfo_reqheight()}"
        )  # whatever the words need
        self.root.deiconify()
        self.root.update()
        self.root.focus_force()


ADVICE = "add headless=true for rows alone, or page=true for a page in a browser"


def opened() -> tuple[Any, Any]:
    """An empty window, and the class of the pictures it shows."""
    try:
        import tkinter

        from PIL.ImageTk import PhotoImage
    except ImportError as error:
        raise LiveError(f"no window can be opened: this Python lacks tkinter ({error}); {ADVICE}") from None
    try:
        return tkinter.Tk(className="fer_lab"), PhotoImage
    except tkinter.TclError as error:
        raise LiveError(f"no window can be opened here ({error}); {ADVICE}") from None
