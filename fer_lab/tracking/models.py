"""The winner's net in MLflow's model registry, where whoever serves it finds it under an alias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fer_lab.tracking.address import redacted
from fer_lab.tracking.record import TrackingError
from fer_lab.tracking.store import first_line, open_client

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from numpy.typing import NDArray
    from torch import nn


def register_champion(
    uri: str,
    run_id: str,
    net: nn.Module,
    example: NDArray[np.uint8],
    name: str,
    requirements: Sequence[str],
    tags: Mapping[str, str] | None = None,
    alias: str = "champion",
) -> str:
    """Logs `net` to the run and registers it; `models:/name@alias` then loads it. Returns the version.

    `net` takes pictures like `example` (B, C, H, W), B >= 2 so that any batch size can be served, on the CPU; it is
    traced in eval mode (torch.export's pt2: a file without our code and without pickles). `requirements` are those of
    the model, such as torch==2.13.0: given, because MLflow takes minutes to find them out. The run keeps its state.
    Raises TrackingError.
    """
    try:
        client = open_client(uri)
        run = client.get_run(run_id)
        model = client.create_logged_model(
            run.info.experiment_id, name, run_id, dict(tags or {}), params=run.data.params
        )
        _upload(client, run_id, model, net.eval(), example, requirements)
        _ensure_name(client, name)
        place = model.artifact_location  # models:/ID would be looked for in the process's global store
        version = client.create_model_version(
            name, place, run_id, dict(tags or {}), model_id=model.model_id
        ).version
        client.set_registered_model_alias(name, alias, version)
    except Exception as error:  # of the store, of its connection, of torch.export
        raise TrackingError(
            f"run {run_id} is not registered as models:/{name}@{alias} in {redacted(uri)}: {first_line(error)}"
        ) from error
    return str(version)


def _upload(
    client: MlflowClient,
    run_id: str,
    model: LoggedModel,
    net: nn.Module,
    example: NDArray[np.uint8],
    requirements: Sequence[str],
) -> None:
    """The parts of mlflow.pytorch.log_model, which knows no store but the process's global one."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, infer_signature

    example = np.array(example)  # not a memory map of the cache
    with torch.no_grad(), TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        mlflow.pytorch.save_model(
            net,
            str(place),
            mlflow_model=Model(run_id=run_id, model_id=model.model_id),
            serialization_format="pt2",
            signature=infer_signature(example, net(torch.from_numpy(example)).numpy()),
            input_example=example,
            pip_requirements=list(requirements),
        )
        client.log_model_artifacts(model.model_id, str(place))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
