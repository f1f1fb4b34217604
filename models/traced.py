"""torchvision's classifiers as reference points, and networks read by tracing: layers, costs, memory, receptive field.

Our own networks are counted from their description; these have none, so `graphs` follows their forward. It works for
our own modules as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from mnet_search.models.arch import External, MnetError, OptionError, Shape
from mnet_search.models.costs import FLOAT32_BYTES, Costs, LayerCosts
from mnet_search.models.graphs import Graph, Pair, Step, field_of_view, one_line, peak, window
from mnet_search.models.tables import nearest

LAYER_ROLES = ("conv", "linear", "norm", "pool", "global pool", "act", "attention")


@dataclass(frozen=True)
class TracedLayer:
    """One convolution, linear layer, norm, pool or activation, under its dotted name, in execution order.

    `kind` is written as `complexity.layers` writes it ("conv 3x3/2", "depthwise 3x3", "linear", "norm", "act", "pool").
    `kernel` and `stride` are (height, width), None where there is no window. Tokens of a transformer are a map of one
    column: Shape(features, tokens, 1). A module that runs twice has its params in its first row. `weights` are those of
    one use, without bias.
    """

    name: str
    kind: str
    input: Shape
    output: Shape
    groups: int = 1
    kernel: Pair | None = None
    stride: Pair | None = None
    params: int = 0
    weights: int = 0
    mult_adds: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Traced:
    """All that one trace of a module says. Counts are at batch 1; elements are numbers, not bytes.

    params: every trainable parameter of the module, also those in no row of `layers` (class tokens, layer scales).
    mult_adds: one for each use of a weight of a convolution or linear layer; the matrix products inside attention,
    norms, activations, pools and biases count nothing. activations: output elements of convolutions and linear layers.
    statistics: running means and variances of batch norms, which are not trained but stored. `peak_activations` and
    `receptive_field` as the functions of these names.
    """

    params: int
    statistics: int
    mult_adds: int
    activations: int
    peak_activations: int
    receptive_field: int | None
    layers: tuple[TracedLayer, ...]


# ---------------------------------------------------------------- building


def classifiers() -> list[str]:
    """The names of torchvision's image classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))


def check_torchvision_name(name: str) -> None:
    """Raises MnetError for a name that is none of `classifiers()`."""
    known = classifiers()
    if name not in known:
        raise MnetError(
            f"unknown torchvision classifier {name!r}{nearest(name.lower(), known)} ({len(known)} of them, such as "
            "alexnet, googlenet, mobilenet_v2, resnet50; torchvision.models.list_models(module=torchvision.models) "
            "lists all)"
        )


def build_torchvision(
    name: str,
    *,
    classes: int = 1000,
    in_channels: int = 3,
    dropout: float | None = None,
    resolution: int | None = None,
    meta: bool = False,
) -> nn.Module:
    """An untrained classifier of torchvision, without auxiliary heads. (N, in_channels, H, W) float -> (N, classes).

    Weights are torchvision's own initialisation, from torch's global generator (googlenet, inception_v3: truncated
    normal, sd 0.01 and 0.1). A first convolution for other than 3 channels is drawn normal, scaled to keep the variance
    of its output. `dropout` sets the rate of every dropout layer (None: torchvision's). `resolution` in pixels matters
    only to vit and maxvit, whose position tables fit one size (None: 224). `meta` builds shapes without numbers.

    Raises MnetError for a name or value that cannot be.
    """
    check_torchvision_name(name)
    for option, value in (("classes", classes), ("in_channels", in_channels), ("resolution", resolution)):
        if option == "resolution" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(option, value, "it is a whole number at least 1")
    with _MetaTensors(meta):
        try:
            options = {"num_classes": classes} | _own_options(name, resolution)
            module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        except (AssertionError, ValueError) as error:
            raise OptionError("resolution", resolution, f"{name} cannot be built for it: {one_line(error)}") from None
        if in_channels != 3:
            _replace_first_conv(module, in_channels)
    if dropout is not None:
        _set_dropout(module, name, dropout)
    return module


def _own_options(name: str, resolution: int | None) -> dict[str, Any]:
    """What a network takes beside its classes."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}  # None warns
    if resolution is not None and name.startswith("vit_"):
        return {"image_size": resolution}
    if resolution is not None and name.startswith("maxvit_"):
        return {"input_size": (resolution, resolution)}
    return {}


class _MetaTensors(TorchFunctionMode):
    """New float tensors on the meta device. (`with torch.device("meta")` takes `arange` too, from which RegNets read
    their widths.)
    """

    def __init__(self, active: bool):
        super().__init__()
        self.makers = {torch.empty, torch.zeros, torch.ones, torch.full, torch.randn} if active else set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.makers and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _replace_first_conv(module: nn.Module, channels: int) -> None:
    path, old = next((path, part) for path, part in module.named_modules() if isinstance(part, nn.Conv2d))
    settings: Any = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(channels, old.out_channels, **settings, bias=old.bias is not None)
    with torch.no_grad():
        # a product of tensors, since one on the meta device has no .item()
        new.weight.copy_(torch.randn(new.weight.shape) * old.weight.std() * math.sqrt(old.in_channels / channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    module.set_submodule(path, new)


def _set_dropout(module: nn.Module, name: str, rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise OptionError("dropout", rate, "it is a number at least 0 and below 1")
    layers = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    if not layers:
        raise OptionError("dropout", rate, f"torchvision's {name} has no dropout layer; leave the option out")
    for layer in layers:
        layer.p = float(rate)


# ---------------------------------------------------------------- reading a module


def survey(module: nn.Module, shape: Shape) -> Traced:
    """Layers, costs, peak and receptive field of `module` at an input of `shape`, from one trace in inference mode.

    The module is left as it was (weights, mode, device). Raises OptionError naming the resolution where the input is
    too small, MnetError where torch.fx cannot follow the module or a layer's costs are not known.
    """
    graph = Graph(module, shape)
    rows = tuple(_layers(graph))
    return Traced(
        params=sum(part.numel() for part in module.parameters() if part.requires_grad),
        statistics=sum(
            b.numel() for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))
        ),
        mult_adds=sum(row.mult_adds for row in rows),
        activations=sum(row.activations for row in rows),
        peak_activations=peak(graph),
        receptive_field=field_of_view(graph),
        layers=rows,
    )


def trace(module: nn.Module, shape: Shape) -> list[TracedLayer]:
    """Every convolution, linear layer, norm, pool and activation in execution order. Raises as `survey`.

    Attention's projections are rows of their own (in_proj and out_proj, in Swin qkv and proj); its matrix products are
    in none.
    """
    return list(_layers(Graph(module, shape)))


def peak_activations(module: nn.Module, shape: Shape) -> int:
    """The largest number of feature-map elements alive at one time, in inference at batch 1, steps in graph order.

    A tensor lives from the step that makes it to its last use, the input image and the result included; parameters and
    what is computed from them alone are no feature maps. A norm, activation, dropout, flatten, view or reshape takes
    over its input's storage where no later step uses that, and else makes a new tensor. add, sub and mul take over the
    first operand that is as large as the result and has no later use. chunk, split, indexing, transpose, permute,
    (un)squeeze and expand share their input's storage. Everything else (convolution, linear, pool, cat, contiguous,
    attention) makes a new tensor while its inputs are alive; what attention or a convolution needs inside itself is not
    counted. Raises as `survey`.
    """
    return peak(Graph(module, shape))


def receptive_field(module: nn.Module, shape: Shape) -> int | None:
    """Input pixels along the longer side that one pixel of the last feature map sees, over the widest path.

    The last map is that before global pooling or flattening; it ends too at an adaptive pool that changes its size.
    Gates behind a global pool (squeeze-and-excitation) are left out. Not cut at the image's border: it can exceed the
    resolution. None where attention or an unknown step makes it meaningless. Raises as `survey`.
    """
    return field_of_view(Graph(module, shape))


# ---------------------------------------------------------------- External nodes of a description


def build_external(node: External) -> nn.Module:
    """The module of a `torchvision:NAME` node, initialised by torchvision. (N, C, H, W) float -> (N, classes)."""
    return _build(node, meta=False)


def external_costs(node: External) -> Costs:
    """The costs of a `torchvision:NAME` node at its input shape; receptive_field is 0 where it has no meaning."""
    found = _survey_external(node)
    return Costs(
        *(found.params, found.mult_adds, found.activations, found.peak_activations),
        weight_bytes=FLOAT32_BYTES * (found.params + found.statistics),
        receptive_field=found.receptive_field or 0,
    )


def external_layers(node: External) -> Iterator[LayerCosts]:
    """The rows of a `torchvision:NAME` node; their costs are without peak, receptive field and norms' statistics."""
    for row in _survey_external(node).layers:
        costs = Costs(row.params, row.mult_adds, row.activations, weight_bytes=FLOAT32_BYTES * row.params)
        yield LayerCosts(row.name, row.name.partition(".")[0], row.kind, row.input, row.output, costs, row.weights)


@lru_cache(maxsize=256)
def _survey_external(node: External) -> Traced:
    return survey(_build(node, meta=True), node.input)


def _build(node: External, meta: bool) -> nn.Module:
    return build_torchvision(
        node.source.removeprefix("torchvision:"),
        classes=node.features,
        in_channels=node.input.channels,
        resolution=node.input.height,
        meta=meta,
        **dict(node.options),
    )


# ---------------------------------------------------------------- layers


def _layers(graph: Graph) -> Iterator[TracedLayer]:
    counted: set[str] = set()
    for step in graph.steps.values():
        _refuse_unknown_weights(graph, step)
        inputs = graph.inputs(step)
        if step.role not in LAYER_ROLES or not inputs:
            continue
        for row in _projections(graph, step) if step.role == "attention" else [_row(step, inputs[0])]:
            owner = row.name.removesuffix(".in_proj")
            module = graph.submodules.get(owner)
            if module is not None and owner not in counted:
                counted.add(owner)
                own = sum(part.numel() for part in module.parameters(recurse=False) if part.requires_grad)
                row = replace(row, params=own)
            yield row


def _refuse_unknown_weights(graph: Graph, step: Step) -> None:
    weighted = step.module is not None and any(True for _ in step.module.parameters())
    if step.role == "weights" or (step.role == "unknown" and weighted):
        what = f"{type(step.module).__name__} {step.node.target}" if step.module is not None else _name(step)
        raise MnetError(f"{graph.title} has {what}, whose mult-adds are not known; use nn.Conv2d and nn.Linear layers")


def _row(step: Step, source: Step) -> TracedLayer:
    """A layer's row, without its params."""
    last = step.role == "linear" or type(step.module) is nn.LayerNorm or source.role == "linear"
    row = TracedLayer(_name(step), step.role.removeprefix("global "), _shape(source, last), _shape(step, last))
    match step.module:
        case nn.Linear() as linear:
            mult_adds = step.elements * linear.in_features
            return replace(row, weights=linear.weight.numel(), mult_adds=mult_adds, activations=step.elements)
        case nn.Conv2d() as conv:
            kernel, stride, _ = window(step)
            depthwise = conv.groups > 1 and conv.groups == conv.in_channels
            kind = f"{'depthwise' if depthwise else 'conv'} {kernel[0]}x{kernel[1]}"
            kind = f"{kind}/{stride[0]}" if stride[0] > 1 else kind
            row = replace(row, kind=kind, groups=conv.groups, kernel=kernel, stride=stride)
            mult_adds = step.elements * conv.weight[0].numel()
            return replace(row, weights=conv.weight.numel(), mult_adds=mult_adds, activations=step.elements)
    if step.role == "pool":
        kernel, stride, _ = window(step)
        return replace(row, kernel=kernel, stride=stride)
    return row


def _projections(graph: Graph, step: Step) -> Iterator[TracedLayer]:
    """The linear layers inside an attention step (self-attention: query, key and value from one map)."""
    name, dims = _name(step), step.dims or (1,)
    if isinstance(step.module, nn.MultiheadAttention):
        tokens = step.elements // dims[-1]
        weights = {f"{name}.in_proj": step.module.in_proj_weight, f"{name}.out_proj": step.module.out_proj.weight}
    else:  # Swin's function, which pads the map to whole windows
        sides: Any = step.node.args[4]
        tokens = math.prod(math.ceil(size / side) * side for size, side in zip(dims[1:3], sides, strict=True))
        weights = {f"{name}.{part}": graph.submodules[f"{name}.{part}"].weight for part in ("qkv", "proj")}
    for path, weight in weights.items():
        out, into = weight.shape
        row = TracedLayer(path, "linear", Shape(into, tokens), Shape(out, tokens), weights=weight.numel())
        yield replace(row, mult_adds=weight.numel() * tokens, activations=out * tokens)


def _name(step: Step) -> str:
    """The dotted name of a module, or that of the module around a function, with the function's own at the end."""
    if step.module is not None:
        return str(step.node.target)
    around = list(step.node.meta.get("nn_module_stack") or [])[-1:]
    return ".".join(around if step.role == "attention" else [*around, step.node.name])


def _shape(step: Step, channels_last: bool) -> Shape:
    sizes = (step.dims or ())[1:]
    if len(sizes) == 3 and not channels_last:
        return Shape(*sizes)
    *positions, channels = sizes  # a vector, tokens, or a map with its channels last
    return Shape(channels, *positions[:1], *([math.prod(positions[1:])] if positions[1:] else []))
