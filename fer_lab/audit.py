"""python -m fer_lab.audit data=… [data.root=PATH] [split=…]: what a data set holds that it should not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lab.cli import UsageError, main


def audit(cfg: DictConfig) -> Path:
    """Looks at every picture of the data set and leaves a manifest and a page beside the cache; returns the page."""
    from fer_lab.build import instantiate, load_data
    from fer_lab.clean import audit_command
    from fer_lab.evaluation.audits import Copies, folder_of, write_audit
    from fer_lab.evaluation.contact import sheets
    from fer_lab.evaluation.findings import STEPS, by_class, findings, listed, manifest_of, release_of, step
    from fer_lab.evaluation.leaks import FLOOR, find_copies

    if not FLOOR <= cfg.threshold <= 1:
        raise UsageError(f"threshold={cfg.threshold}; expected {FLOOR} to 1, e.g. 0.74")
    command = audit_command(cfg)
    cfg.data.bad, cfg.data.exclude = "skip", None
    source = instantiate(cfg.data.source)
    items, remarks = listed(source)
    loaded = load_data(cfg)
    index, images, split = loaded.cache.index, loaded.cache.images, loaded.split
    with bar(f"comparing {len(index):,} faces", len(index)) as advance:
        pairs = find_copies(images, advance)
    found = manifest_of(index, pairs, cfg.threshold, loaded.cache.skipped)
    facts = findings(found, Copies.of(found, index, split), items, index)
    manifest = write_audit(found, facts, folder_of(index, cfg.cache_dir))
    page = write_page(
        manifest.with_name("index.html"),
        audit=found,
        found=facts,
        remarks=remarks,
        release=release_of(source),
        classes=by_class(items, source),
        steps=[step(one, pairs, index, split) for one in sorted({*STEPS, cfg.threshold})],
        sheets=sheets(found.groups, index, split, images, cfg.groups),
        command=command,
    )
    conclude(facts["counts"], f"audit {found.digest[:16]} of {found.name}", page, command)
    return page


@contextmanager
def bar(words: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(words, total=total)
        yield lambda count: shown.advance(task, count)


def write_page(path: Path, **facts: Any) -> Path:
    """The page of templates/audit.html.j2, whole or not at all; it holds its pictures and asks nothing of a network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from fer_lab.evaluation.findings import headline

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = facts["found"]["counts"]
    template = pages.get_template("audit.html.j2")
    part = path.with_name("index.html.part")
    part.write_text(
        template.render(
            headline=headline(counts), counts=counts, train=train_command(facts["command"]), **facts
        ),
        encoding="utf-8",
    )
    return part.replace(path)


def train_command(command: str) -> str:
    """What to type after the audit of `command`."""
    return f"{command.replace('fer_lab.audit', 'fer_lab.train', 1)} data.exclude=audit"


def conclude(counts: dict[str, Any], name: str, page: Path, command: str) -> None:
    from fer_lab.evaluation.findings import headline

    print(
        f"{counts['pictures']:,} pictures, {counts['unreadable']:,} unreadable, {counts['blank']:,} blank; "
        f"{counts['groups']:,} groups of copies, {counts['groups of conflicting labels']:,} of them with conflicting "
        f"labels; {headline(counts)}"
    )
    print(f"{name} · page {page} · next: {train_command(command)}")


if __name__ == "__main__":
    main(audit, "audit")
