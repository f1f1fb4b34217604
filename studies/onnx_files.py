"""Trained networks as ONNX files, in float32 and, where asked for, with 8-bit weights and activations.

The normalisation is inside the graph, since to forget it is the commonest mistake: input `images` is float32 (batch, C,
H, W) from 0 (black) to 1 (white), output `scores` float32 (batch, classes). Everything that is known of the network
stands in the file's metadata.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mnet_search.models.complexity import costs
from mnet_search.studies.parity import Parity, batch_size, check
from mnet_search.studies.torch_files import TRACED_BATCH, program, quietly
from mnet_search.studies.trained import LabelledImages, Made, Trained

INPUT, OUTPUT, BATCH = "images", "scores", "batch"
CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Int8:
    """The 8-bit file beside the float32 one, on all validation images: shares of images."""

    images: int
    accuracy_float32: float
    accuracy_int8: float
    same_top1: float
    calibration_images: int


def make(trained: Trained, *, int8: bool) -> list[Made]:
    """The ONNX file, checked against torch, and with `int8` its 8-bit sibling, measured. Raises MnetError."""
    _ = trained.images  # what cannot be had is said before the long work
    model = _exported(trained)
    parity = check(trained, _Runner(model.SerializeToString()), f"{trained.stem}.onnx")
    about = _about(trained, parity)
    content = _with_metadata(model, about)
    made = [Made(".onnx", content, {"parity": asdict(parity)})]
    if int8:
        with quietly(trained, "the quantiser of onnxruntime"):
            small = _quantised(content, trained.images.calibration.images)
        result = _measured(trained, content, small.SerializeToString())
        content = _with_metadata(small, about | {"int8": json.dumps(asdict(result))})
        facts = asdict(result) | {"bytes_float32": len(made[0].content), "bytes_int8": len(content)}
        made.append(Made("-int8.onnx", content, {"int8": facts}))
    return made


def _exported(trained: Trained) -> onnx.ModelProto:
    example = torch.zeros(TRACED_BATCH, *trained.arch.input)
    found = program(trained)
    with quietly(trained, "the ONNX exporter"):
        converted = torch.onnx.export(found, (example,), input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert converted is not None
        model = converted.model_proto
        _tidy(model)
        onnx.checker.check_model(model, full_check=True)
        return model


def _tidy(model: onnx.ModelProto) -> None:
    """Name the batch axis, and leave out the exporter's notes on each node, which are longer than small networks."""
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, BATCH)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Runner:
    """uint8 images to scores, by a file's own normalisation."""

    def __init__(self, content: bytes):
        self._session = _session(content)

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: _pixels(images)})[0]
        return scores


def _pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(images, np.float32) / np.float32(255)


def _about(trained: Trained, parity: Parity) -> dict[str, str]:
    """The metadata: every value is text, lists and mappings are JSON."""
    mean, std, class_names = trained.about_images
    total = costs(trained.arch)
    return {
        "arch_id": trained.arch.id,
        "family": trained.arch.family,
        "study": trained.study,
        "trial": str(trained.number),
        "classes": json.dumps(list(class_names)),
        "input": json.dumps(
            {"name": INPUT, "shape": [BATCH, *trained.arch.input], "dtype": "float32", "range": [0, 1]}
        ),
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "normalisation": "inside the graph: (images - mean) / std",
        "mult_adds": str(total.mult_adds),
        "params": str(total.params),
        "validation_accuracy": str(float(trained.row["accuracy"])),
        "seed": str(trained.config["seed"]),
        "mnet_search_version": metadata.version("mnet-search"),
        "parity": json.dumps(asdict(parity)),
    }


def _with_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> bytes:
    onnx.helper.set_model_props(model, dict(values))
    content: bytes = model.SerializeToString()
    return content


# ---------------------------------------------------------------- 8 bits


class _Calibration(CalibrationDataReader):
    """Training images in batches."""

    def __init__(self, images: npt.NDArray[np.uint8]):
        self._batches: Iterator[npt.NDArray[np.uint8]] = (
            images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: _pixels(batch)}


def _quantised(content: bytes, images: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    """Weights per channel and activations in 8 signed bits, with quantise and dequantise nodes, which is what
    onnxruntime recommends first on x86 and Arm.
    """
    with tempfile.TemporaryDirectory(prefix="mnet-search-") as folder:
        plain, folded, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "folded", "small"))
        plain.write_bytes(content)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            small,
            _Calibration(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(small)


def _measured(trained: Trained, plain: bytes, small: bytes) -> Int8:
    runs = _Runner(plain), _Runner(small)
    counts, total = np.zeros(3, np.int64), 0
    for part in trained.images.validation():
        for batch in _batches(part):
            tops = [run(batch.images).argmax(1) for run in runs]
            counts += [(top == batch.labels).sum() for top in tops] + [(tops[0] == tops[1]).sum()]
            total += len(batch)
    before, after, same = (counts / total).tolist()
    return Int8(total, before, after, same, len(trained.images.calibration))


def _batches(part: LabelledImages) -> Iterator[LabelledImages]:
    step = batch_size(part.images.shape)
    for start in range(0, len(part), step):
        yield LabelledImages(part.images[start : start + step], part.labels[start : start + step])
