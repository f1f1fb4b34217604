"""The model card of an exported network: one Markdown file that says what it is, what it costs, how well it does, and
where every figure comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.spaces.schema import Data
from mnet_search.studies import diagram
from mnet_search.studies.configs import data_facts
from mnet_search.studies.trained import Made, Trained

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # what Pillow calls images of so many channels
READ_ONE_BY_ONE = "files-"  # begins the digest of such data
PLOTTED = 2  # epochs that a curve needs to be drawn
SNIPPET = """\
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])


def pixels(path):
    image = Image.open(path).convert("{mode}")
{resized}
    return np.asarray(image, np.float32).reshape({height}, {width}, {channels}).transpose(2, 0, 1) / 255


def scores(paths):
    return session.run(["scores"], {{"images": np.stack([pixels(path) for path in paths])}})[0]


for path in sys.argv[1:]:
    print(path, classes[scores([path])[0].argmax()])
"""
WHOLE = "    image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"
MIDDLE = """\
    sides = [int({height} * side / min(image.size)) for side in image.size]  # the shorter one to {height} pixels
    left, top = (round((side - {height}) / 2) for side in sides)  # and of the other the middle
    image = image.resize(sides, Image.Resampling.BILINEAR).crop((left, top, left + {width}, top + {height}))"""
"""How training saw pictures of a folder that it read one by one."""


def card(trained: Trained, made: Sequence[Made]) -> str:
    """The card as Markdown; `made` are the files that were exported with it."""
    parts = [
        _head(trained),
        _figures(trained),
        _architecture(trained),
        _curve(trained),
        _data(trained),
        _files(trained, made),
        _provenance(trained),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(trained: Trained) -> str:
    arch, classes = trained.arch, trained.arch.root.output.channels
    options = ", ".join(f"{name}={value}" for name, value in arch.options.items())
    return (
        f"# {arch.family} {arch.id}\n\n"
        f"A {arch.family} network, trial {trained.number} of the study {trained.study}. It takes images of "
        f"{arch.input} (channels, height, width) and gives {classes} scores, one a class; the largest is its "
        f"answer.\n\nOptions: `{options}`"
    )


def _figures(trained: Trained) -> str:
    """Costs, accuracy and latency, each with what is known of its spread."""
    total, measured = costs(trained.arch), trained.config["measured"]
    rows = [
        ("params", f"{total.params:,}", "trainable, exact"),
        ("mult-adds", f"{total.mult_adds:,}", "of convolutions and linear layers for one image, exact"),
        ("activations", f"{total.activations:,}", "output elements of convolutions and linear layers, exact"),
        ("weights", f"{total.weight_bytes:,} bytes", "float32, with batch-norm statistics"),
    ]
    if "accuracy" in measured:
        rows.append(("validation accuracy", f"{measured['accuracy']:.2%}", _images_note(trained)))
    if "accuracy_mean" in measured:
        sd = f", sd {measured['accuracy_sd']:.2%}" if "accuracy_sd" in measured else ""
        rows.append(
            (
                "over runs",
                f"{measured['accuracy_mean']:.2%}{sd}",
                f"mean of {measured['runs']} runs of this network, which differ in their seeds",
            )
        )
    if "latency_ms" in measured:
        quartiles = [f"{measured[name]:.3g}" for name in ("latency_q1_ms", "latency_q3_ms") if name in measured]
        note = f"quartiles {' to '.join(quartiles)} ms; " if quartiles else ""
        rows.append(("latency", f"{measured['latency_ms']:.3g} ms", f"median; {note}{_device(trained.environment)}"))
    return f"## Figures\n\n{_markdown_table(('', 'value', 'what it is'), rows)}"


def _images_note(trained: Trained) -> str:
    runs, images = trained.config["measured"].get("runs", 1), trained.config["measured"].get("validation_images")
    note = "one run" if runs == 1 else f"this run, one of {runs}"
    if not images:
        return f"{note}, after its last epoch"
    share = min(max(trained.config["measured"]["accuracy"], 1 / images), 1 - 1 / images)
    error = math.sqrt(share * (1 - share) / images)
    return f"{note}, after its last epoch, on {images} images: sampling error {error:.2%}"


def _device(environment: Mapping[str, Any]) -> str:
    """Where latency was taken, as far as it was recorded."""
    device, threads = environment.get("device"), environment.get("threads")
    if device is None:
        return "the device was not recorded"
    where = f"{environment.get('processor') or 'CPU'}, {threads} thread{'s' * (threads != 1)}"
    shown = where if device == "cpu" else device
    return f"on {shown}, torch {environment.get('torch', 'of a version that was not recorded')}"


def _architecture(trained: Trained) -> str:
    rows = diagram.stages(trained.arch)
    chart = diagram.flowchart(trained.arch, rows, trained.arch.root.output.channels)
    return (
        f"## Architecture\n\n```mermaid\n{chart}\n```\n\n"
        f"The same as text; shapes are channels, height, width:\n\n```text\n{diagram.table(rows)}\n```"
    )


def _curve(trained: Trained) -> str:
    curve = trained.curve
    if curve.empty:
        return ""
    columns = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate")
    head = ("epoch", "training loss", "training accuracy", "validation loss", "validation accuracy", "learning rate")
    rows = [(str(int(row[0])), *(_number(value) for value in row[1:])) for row in curve[list(columns)].to_numpy()]
    text = f"## Learning curve\n\n{_markdown_table(head, rows)}"
    accuracies = [float(value) for value in curve["validation_accuracy"]]
    if len(accuracies) < PLOTTED or not all(map(math.isfinite, accuracies)):
        return text
    line = ", ".join(f"{100 * value:.2f}" for value in accuracies)
    chart = (
        'xychart-beta\n    title "validation accuracy, %"\n'
        f'    x-axis "epoch" {int(curve["epoch"].iloc[0])} --> {int(curve["epoch"].iloc[-1])}\n    line [{line}]'
    )
    return f"{text}\n\n```mermaid\n{chart}\n```"


def _data(trained: Trained) -> str:
    data = Data.model_validate(trained.config["data"])
    facts = data_facts(trained.config["provenance"], data)
    settings = data.model_dump(exclude_none=True, exclude={"download", "path", "stream"})
    rows = [("data", data.name), *((f"data.{name}", str(value)) for name, value in settings.items() if name != "name")]
    rows += [
        (name.replace("_", " "), f"{facts[name]:,}") for name in ("train_images", "validation_images") if name in facts
    ]
    if "data_digest" in facts:
        rows.append(("digest of both parts", f"`{facts['data_digest']}`"))
    rows.append(("licence of the images", _licence(trained, data)))
    return (
        f"## Data\n\n{_markdown_table(('', ''), rows)}\n\n"
        "Figures above are of validation images; `mnet-search train` measures the test images, once."
    )


def _licence(trained: Trained, data: Data) -> str:
    if trained.from_data is None:
        return "not looked up"
    try:
        return trained.from_data.licence(data)
    except MnetError:  # the files are not here: the card can be written without them
        return "not known here, for the images are not on this machine"


# ---------------------------------------------------------------- files


def facts_of(made: Iterable[Made]) -> dict[str, Any]:
    """What was found while the files of one network were made: parity, parity_executorch, int8."""
    return {name: value for one in made for name, value in one.facts.items()}


def parity_sentence(parity: Mapping[str, Any]) -> str:
    """One line for people."""
    return (
        f"{parity['images']} validation images, largest difference of a score {parity['max_difference']:.1e}, same "
        f"class first in {parity['same_top1']:.2%}, accuracy {parity['accuracy']:.2%} (torch "
        f"{parity['accuracy_torch']:.2%})"
    )


def int8_sentence(found: Mapping[str, Any]) -> str:
    """One line for people."""
    return (
        f"accuracy {found['accuracy_float32']:.2%} in float32, {found['accuracy_int8']:.2%} in 8 bits on "
        f"{found['images']} validation images (same class first in {found['same_top1']:.2%}); "
        f"{found['bytes_float32']:,} bytes to {found['bytes_int8']:,}; calibrated on {found['calibration_images']} "
        "training images"
    )


WHAT = {
    ".yaml": "the training config",
    ".safetensors": "weights after the last epoch, by their state-dict names in mnet-search",
    ".pt2": "program for `torch.export.load(...).module()`; takes float32 images 0..1, any batch size",
    ".onnx": "ONNX, float32; takes float32 images 0..1, any batch size",
    "-int8.onnx": "ONNX with 8-bit weights and activations; the same input",
    ".pte": "ExecuTorch program for one image at a time, XNNPACK; takes float32 images 0..1",
}


def _files(trained: Trained, made: Sequence[Made]) -> str:
    if not made:
        return ""
    rows = [(f"`{trained.stem}{one.suffix}`", f"{len(one.content):,}", WHAT.get(one.suffix, "")) for one in made]
    text, facts = f"## Files\n\n{_markdown_table(('file', 'bytes', 'what it is'), rows)}", facts_of(made)
    if "parity" in facts:
        text += f"\n\nThe ONNX file beside torch: {parity_sentence(facts['parity'])}."
    if "parity_executorch" in facts:
        text += f"\n\nThe ExecuTorch program beside torch: {parity_sentence(facts['parity_executorch'])}."
    if "int8" in facts:
        text += f"\n\nThe 8-bit file: {int8_sentence(facts['int8'])}."
    return f"{text}\n\n{_use(trained)}" if "parity" in facts else text


def _use(trained: Trained) -> str:
    shape = trained.arch.input
    sizes = {"width": shape.width, "height": shape.height}
    one_by_one = trained.checkpoint.run["data"].startswith(READ_ONE_BY_ONE)
    code = SNIPPET.format(
        file=f"{trained.stem}.onnx",
        mode=MODES.get(shape.channels, "RGB"),
        resized=(MIDDLE if one_by_one else WHOLE).format(**sizes),
        channels=shape.channels,
        **sizes,
    )
    return (
        "## Use\n\nWith onnxruntime, numpy and Pillow alone. The normalisation is inside the file: give pixels as "
        "fractions 0..1 of white. The network was trained on images resized as here, bilinearly with antialiasing; "
        f"rounding may differ by a grey step.\n\n```python\n{code}```"
    )


def _provenance(trained: Trained) -> str:
    known = trained.config["provenance"]
    versions = ", ".join(f"{name} {value}" for name, value in known.get("versions", {}).items() if value)
    rows = [
        ("study, trial", f"{trained.study}, {trained.number}"),
        ("arch id, seed", f"`{trained.arch.id}`, {trained.config['seed']}"),
        ("space hash", f"`{known['space_hash']}`"),
        ("git commit of the working directory", f"`{known['git_commit']}`" if known.get("git_commit") else "none"),
        ("versions", versions or "not recorded"),
        ("begun", known.get("started", "not recorded")),
    ]
    again = [f"mnet-search train {trained.stem}.yaml    # this network again: same seed, data and recipe"]
    if " " in known.get("command", ""):  # from Python there is only the program's name
        again.append(f"{known['command']}    # the whole study")
    commands = "\n".join(again)
    return (
        f"## Where it comes from\n\n{_markdown_table(('', ''), rows)}\n\nTo make it again:\n\n```sh\n{commands}\n```"
        "\n\nOn the same versions and kind of processor the training repeats exactly; elsewhere within rounding."
    )


# ---------------------------------------------------------------- Markdown


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
