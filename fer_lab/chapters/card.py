"""The model card (Mitchell et al. 2019): what this net is, what it is for, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from fer_lab.chapters.case import Case, percent
from fer_lab.pages import Code, Points, Section, Table, Text

LICENCES = {
    "jaffe": "JAFFE is for research only and may not be passed on.",
    "fer2013": "The licence of FER2013's pictures is unclear: never pass them on.",
    "ferplus": "FER+ labels are MIT-licensed; the licence of their pictures, FER2013's, is unclear: never pass them on.",
    "rafdb": "RAF-DB is for non-commercial research, by agreement with its authors; it may not be passed on.",
    "affectnet": "AffectNet is for non-commercial research, by licence; it may not be passed on.",
    "synthetic": "The faces are drawn; they show nobody, and figures on them say nothing about people.",
}
OTHERWISE = "What the licence of this data set allows is not known to fer_lab: ask those who gave it to you."


def card(case: Case) -> Section:
    return Section(
        "Model card",
        [
            Text(
                f"Tells which of {len(case.part.classes)} expressions a cropped face shows: {', '.join(case.part.classes)}."
                if case.part.classes
                else "Tells the valence and arousal that a cropped face shows."
            ),
            Points(list(purposes(case))),
            Table(("", ""), list(facts(case)), words=2),
        ],
    )


def purposes(case: Case) -> Iterator[str]:
    yield "**For** research on expression recognition, for comparing methods under the protocol above, and for teaching."
    yield (
        "**Expression, not feeling.** It names the expression that annotators would see on a face. Nobody's emotion, state of "
        "mind, intention or truthfulness can be read from it."
    )
    yield (
        "**Not for** inferring emotions at work or in education: the EU AI Act prohibits it (Regulation (EU) 2024/1689, "
        "Art. 5(1)(f)), but for medical or safety reasons. Nor for decisions about people, or for watching them unasked."
    )
    yield limits(case)
    yield (
        "**Not known:** how it does for people of other ages, skin tones, cultures and genders than its data set has, or "
        "outside of it; this data set carries no such labels. Posed and acted expressions differ from spontaneous ones."
    )


def limits(case: Case) -> str:
    weak = sorted(
        (row["recall"], name) for name, row in case.part.per_class.items() if row["recall"] is not None and row["recall"] == row["recall"]
    )  # fmt: skip
    if not weak:
        return "**Limits:** its figures hold for faces like those of its data set, cropped alike."
    words = " and ".join(f"{name} ({percent(recall)})" for recall, name in weak[:2])
    return f"**Limits:** it finds least of {words}; its figures hold for faces like those of its data set, cropped alike."


def facts(case: Case) -> Iterator[tuple[str, str]]:
    config, run = case.run.config, case.run
    yield "net", f"`{str(config.model.net._target_).removeprefix('fer_lab.models.')}`"
    if count := parameters(case):
        yield "parameters", f"{count:,}"
    if run.has_net:
        yield (
            "size",
            f"{(run.folder / 'best.pt').stat().st_size / 1e6:,.1f} MB (`best.pt`, with its averages)",
        )
    if case.part.inference_ms:
        machine = run.tags.get("machine.gpu") or run.tags.get("machine.cpu") or "the machine that judged it"
        yield (
            "latency",
            f"{case.part.inference_ms:.2f} ms for one face and all its views, median, on {machine}",
        )
    yield (
        "input",
        f"a face cropped as in {case.data_name}, {config.data.size}×{config.data.size}, values 0..255",
    )
    yield "started from", str(config.model.weights or "random weights")
    yield "data", f"{case.data_name}. {LICENCES.get(case.data_name, OTHERWISE)}"
    found = {
        tag.removeprefix("version."): value for tag, value in run.tags.items() if tag.startswith("version.")
    }
    shown = [
        f"{name} {found[name]}"
        for name in ("python", "torch", "pytorch-lightning", "numpy", "pillow")
        if name in found
    ]
    yield "versions", ", ".join([f"fer_lab {version('fer_lab')}", *shown])


def parameters(case: Case) -> int:
    if case.module is not None:
        return sum(weight.numel() for weight in case.module.judged.parameters())
    return int(case.run.fit.get("parameters", 0))


def again(case: Case) -> Section:
    """The commands that lead here and on from here."""
    name = case.run.name
    lines = [case.run.tags["command"] + "   # this run"] if "command" in case.run.tags else []
    lines.append(f"python -m fer_lab.report run={name}   # this page")
    if case.run.has_net:
        lines += [
            f"python -m fer_lab.evaluate run={name}   # its figures again",
            f"python -m fer_lab.export run={name}   # the net as files that need no run",
        ]
    return Section("Again", [Code(lines)])
