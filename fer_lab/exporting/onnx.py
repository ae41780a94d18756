"""The same graph as ONNX, for ONNX Runtime, OpenVINO, TensorRT and whatever else is no Python."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lab.exporting.facts import Facts, FileError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT = "pixels"


def missing() -> str:
    """What to type where a package that ONNX needs is not there; empty where all are."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    return f"ONNX needs {', '.join(absent)}: pip install 'fer_lab[export]'" if absent else ""


def save(exported: ExportedProgram, path: Path, facts: Facts) -> None:
    """Writes and checks the file; `facts` become its metadata_props."""
    import onnx
    import torch

    output = "predictions" if facts.affect else "probabilities"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        made = torch.onnx.export(
            exported, (), dynamo=True, input_names=[INPUT], output_names=[output], verbose=False
        )
    assert made is not None
    shape = made.model.graph.inputs[0].shape
    assert shape is not None
    made.rename_axes({str(shape[0]): "batch"})
    made.model.metadata_props.update(facts.as_text())
    made.save(path, external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


class OnnxProgram:
    """Pixels (B, channels, size, size) uint8 -> probabilities (B, K), or what its facts say, by ONNX Runtime on the CPU."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise FileError(f"there is no net at {path}; python -m fer_lab.export run=ID writes one")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors alone
        # between calls others need the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for every kind of broken file
            raise FileError(
                f"{path} is no ONNX file that ONNX Runtime reads: {str(error).splitlines()[0]}"
            ) from error
        self.facts = Facts.of_text(self.session.get_modelmeta().custom_metadata_map, str(path))

    def __call__(self, pixels: Tensor) -> Tensor:
        import torch

        (found,) = self.session.run(None, {INPUT: pixels.numpy()})
        return torch.from_numpy(found)
