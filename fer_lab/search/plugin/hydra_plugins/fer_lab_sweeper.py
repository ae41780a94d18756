"""Hydra's door to the sweep engine: it imports this file at each start, so the engine is loaded only when used."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FerSweeper(Sweeper):
    """`hydra/sweeper=fer`; its options are in conf/hydra/sweeper/fer.yaml."""

    def __init__(self, **options: Any) -> None:
        pass  # they are read from the config, which workers have as well

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.settings = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        from fer_lab.search.roles import play

        play(self.context, self.settings, arguments)
