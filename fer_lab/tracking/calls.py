"""Which events of a record go out together, and how far the record is sent after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fer_lab.tracking.record import Event

TOGETHER = (("params", "tags", "metrics"), ("dataset",))
ALONE = ("artifact", "state")
"""Kinds of events that share a call, and that have their own."""
MOST = 200
"""Events in one call."""


def calls(events: Sequence[tuple[Event, int]], start: int) -> Iterator[tuple[list[Event], int]]:
    """The events that go out in one call each, with the offset up to which the record is sent after it.

    Numbers go first, as many as fit, and the state last; of a file or a state that comes several times only the last.
    """
    newest = {(event["event"], event.get("path")): event for event, _ in events}.values()
    together = [[event for event, _ in events if event["event"] in kinds] for kinds in TOGETHER]
    alone = [[event] for kind in ALONE for event in newest if event["event"] == kind]
    groups = [part[row : row + MOST] for part in together for row in range(0, len(part), MOST)] + alone
    begins = dict(zip((id(event) for event, _ in events), (start, *(end for _, end in events)), strict=False))
    for done, call in enumerate(groups, 1):
        unsent = [begins[id(event)] for later in groups[done:] for event in later]
        yield call, min(unsent, default=events[-1][1])
