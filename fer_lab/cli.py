"""The command line shared by the entry points: Hydra's grammar, with errors that say what to type."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
os.environ.setdefault("FER_LAB_ROOT", str(ROOT))  # where Hydra finds sweeps/


class UsageError(Exception):
    """Something that the user can put right by typing another command; ends with exit code 2."""


def main(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `task` on the composed config. Exit code 0, 1 for a failed run, 2 for a usage error, 141 where the reader of a
    pipe (`| head`) had read enough before the end."""
    try:
        obey(task, config_name)
    except BrokenPipeError:
        if is_read():  # it was another pipe
            raise
        sys.exit(141)
    finally:
        is_read()


def is_read() -> bool:
    """Whether anybody still reads what is printed; if not, the rest is printed to nobody, without a traceback."""
    output = select.poll()
    output.register(1, 0)  # errors alone, such as a pipe without a reader
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return False


def obey(task: Callable[[DictConfig], Any], config_name: str) -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        show_help(config_name)
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach the handlers below instead of Hydra's own printing
    failures: list[BaseException] = []

    def guarded(cfg: DictConfig) -> Any:
        """A single run; a sweep never comes here, its sweeper calls what it tunes."""
        try:
            take_as_typed(cfg)
            refuse_wrong_kinds(cfg, config_name)
            return task(cfg)
        except Exception as error:  # raised again outside Hydra, which would print it in its own words
            failures.append(error)
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        leave(explain(sys.argv[1:], config_name) or str(error), 2)
    except Exception as error:  # of a sweeper
        failures.append(error)
    except KeyboardInterrupt:  # where nobody had anything to finish
        leave("interrupted", 130)
    for failure in failures:
        settle(failure)


def show_help(config_name: str) -> None:
    """Usage, groups with their choices, keys with their values. Hydra's own help takes twice as long to say it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(config_name, return_hydra_config=True)
    usage = cfg.hydra.help
    print(f"{usage.header}\n\nGroups and their choices (group=choice)")
    for group in sorted(cfg.hydra.runtime.choices):
        if "/" not in group:
            print(f"  {group}: {', '.join(choices_of(group))}")
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    print(f"\nKeys and their values now (key=value)\n\n{OmegaConf.to_yaml(settings)}\n{usage.footer}")


def settle(error: BaseException) -> None:
    """Ends the process as the error deserves: our own errors are sentences, the others keep their traceback."""
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        if cause is not None and type(cause).__module__.startswith("fer_lab"):
            return settle(cause)
        key = str(error).rpartition("full_key: ")[2]
        leave(f"{key}: {cause or str(error).splitlines()[0]}; `--help` shows the keys and their values", 2)
    if (
        isinstance(error, UsageError | OmegaConfBaseException)
        or type(error).__name__ == "MisconfigurationException"
    ):
        leave(str(error), 2)
    if type(error).__module__.startswith("fer_lab"):
        leave(str(error), 2 if isinstance(error, ValueError) else 1)
    raise error


def leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


TEXTS = (
    "run", "source", "out", "output", "record", "subject", "text", "sweep", "runs_dir", "cache_dir", "data.root",
)  # fmt: skip
"""Keys of names, none of which is a number or a truth value, whatever it looks like: 2024_01, 12e45678, on."""


def typed() -> list[str]:
    """The overrides of this command, in their order."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def take_as_typed(cfg: DictConfig) -> None:
    """Undoes what Hydra's grammar made of unquoted names that look like numbers; null stays null."""
    for override in OverridesParser.create().parse_overrides(typed()):
        key = str(override.key_or_group)
        if key in TEXTS and not override.is_delete() and isinstance(override.value(), int | float):
            OmegaConf.update(cfg, key, str(override.input_line).partition("=")[2].strip())


def refuse_wrong_kinds(cfg: DictConfig, config_name: str) -> None:
    """A word where the config has a number, a fraction where it has a whole number, or null where it has either in any
    case, is a usage error."""
    overrides = typed()
    groups = [text for text in overrides if folder_of(text.partition("=")[0].lstrip("+~")).is_dir()]
    if len(groups) == len(overrides):
        return
    usual = hydra.compose(config_name, overrides=groups)
    faults = []
    for key in (text.partition("=")[0] for text in overrides if text not in groups):
        if key.startswith("trainer."):  # Lightning takes several kinds and checks them itself
            continue
        before, now = (OmegaConf.select(config, key.lstrip("+~")) for config in (usual, cfg))
        if key == "split.fold" and now == "all":  # the one word that stands among numbers
            continue
        expected = next((words for kind, words in KINDS if isinstance(before, kind)), None)
        if expected and not fits(before, now) and not (now is None and may_be_null(key, config_name)):
            faults.append(f"{key}={'null' if now is None else now}: expected {expected}, such as {before}")
    if faults:
        raise UsageError("\n".join(faults))


def may_be_null(key: str, config_name: str) -> bool:
    """Where a group or a recipe put a number, but the config itself has none; and what is taken out (~key)."""
    return not isinstance(OmegaConf.select(hydra.compose(config_name), key.lstrip("+")), int | float)


KINDS = ((bool, "true or false"), (int, "a whole number"), (float, "a number"))


def fits(before: bool | int | float, now: Any) -> bool:
    if isinstance(before, bool) or isinstance(now, bool):
        return isinstance(before, bool) and isinstance(now, bool)
    return isinstance(now, int if isinstance(before, int) else (int, float))


def explain(arguments: list[str], config_name: str) -> str | None:
    """Every override that does not fit, each with its near matches; None where all of them fit."""
    from hydra._internal.utils import get_args

    parser = OverridesParser.create()
    faults: list[str] = []
    choices: list[Override] = []
    values: list[Override] = []
    for text in get_args(arguments).overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            faults.append(f"{text!r} is not of the form key=value or group=choice")
            continue
        if override.is_sweep_override():
            continue  # its key and its choices are the sweeper's to judge
        (choices if folder_of(str(override.key_or_group)).is_dir() else values).append(override)
    wrong = {override.key_or_group: fault for override in choices if (fault := choice_fault(override))}
    good = [str(override.input_line) for override in choices if override.key_or_group not in wrong]
    faults += wrong.values()
    faults += [fault for override in values if (fault := value_fault(override, good, config_name))]
    return "\n".join(faults) or None


def choice_fault(override: Override) -> str | None:
    group, choice = override.key_or_group, override.value()
    if not isinstance(choice, str):
        return None
    known = choices_of(group)
    if choice in known:
        return None
    return f"{group}={choice}: no such {group}{near(choice, known)}; choices: {', '.join(known)}"


def folder_of(group: str) -> Path:
    return ROOT / "sweeps" if group == "sweeps" else CONF / group


def choices_of(group: str) -> list[str]:
    return sorted(path.stem for path in folder_of(group).glob("*.yaml"))


def value_fault(override: Override, groups: list[str], config_name: str) -> str | None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            base = hydra.compose(config_name, overrides=groups, return_hydra_config=True)
        except HydraException as error:
            return str(error)
        try:
            hydra.compose(config_name, overrides=[*groups, str(override.input_line)])
        except (HydraException, OmegaConfBaseException) as error:
            key = str(override.key_or_group)
            known = [*keys(base), *(path.name for path in CONF.iterdir() if path.is_dir())]
            if key in known:
                return f"{override.input_line}: {str(error).splitlines()[0]}"
            target = OmegaConf.select(base, f"{key.rpartition('.')[0]}._target_") if "." in key else None
            more = f" or, if {target} takes it, +{override.input_line}" if target else ""
            return f"{key}: no such key{near(key, known)}; `--help` lists all{more}"
    return None


def keys(config: DictConfig, prefix: str = "") -> Iterable[str]:
    """Every dotted key of a config, sections included."""
    for key in map(str, config):
        if prefix == "" and key == "hydra":
            continue
        yield f"{prefix}{key}"
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from keys(child, f"{prefix}{key}.")


def near(word: str, known: Iterable[str]) -> str:
    known = sorted(set(known))
    found = get_close_matches(word, known, n=3, cutoff=0.5)
    tail = word.rsplit(".", 1)[-1]
    found += [key for key in known if key.rsplit(".", 1)[-1] == tail and key not in found][:3]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
