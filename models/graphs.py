"""A module's graph with the shape of every step: what lives when, and what a pixel sees.

torch.fx follows the module's `forward` once, and the shapes are run through it on the meta device: no number is
computed. It is how networks without a description of ours are read, and for our own modules the check of the closed
forms.

torch.fx replaces `nn.Module.__call__` while it traces (below half a second): no other thread may run a module then.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from mnet_search.models.arch import MnetError, OptionError, Shape

Pair = tuple[int, int]  # (height, width)

# What torch raises where a shape does not fit.
MISFITS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError)
# What a step of the graph is, by its module, or by the name of its function or method.
MODULE_ROLES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Conv2d,), "conv"),
    ((nn.Linear,), "linear"),
    ((nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm), "norm"),
    ((nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.Hardsigmoid, nn.GELU), "act"),
    ((nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Softplus, nn.PReLU, nn.Hardtanh), "act"),
    ((nn.MaxPool2d, nn.AvgPool2d), "pool"),
    ((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), "global pool"),
    ((nn.Dropout, nn.Dropout2d, nn.Identity), "dropout"),
    ((nn.Flatten, nn.Unflatten), "reshape"),
    ((nn.ChannelShuffle,), "copy"),
    ((nn.MultiheadAttention,), "attention"),
)
FUNCTION_ROLES: dict[str, str] = {
    name: role
    for role, names in {
        "weights": "conv1d conv2d conv3d conv_transpose2d linear bilinear embedding",  # outside a layer
        "norm": "batch_norm layer_norm group_norm",
        "act": "relu relu_ relu6 hardswish silu sigmoid hardsigmoid gelu tanh leaky_relu clamp",
        "pool": "max_pool2d avg_pool2d",
        "global pool": "adaptive_avg_pool2d adaptive_max_pool2d mean",
        "dropout": "dropout dropout2d stochastic_depth",
        "reshape": "flatten view reshape",
        "view": "permute transpose swapaxes chunk split getitem unsqueeze squeeze expand",
        "sum": "add iadd mul imul sub",
        "copy": "cat concat contiguous clone channel_shuffle",
        "attention": "shifted_window_attention",
    }.items()
    for name in names.split()
}
IN_PLACE = {"norm", "act", "dropout", "reshape"}
KEEPS_FIELD = {"norm", "act", "dropout", "linear", "sum", "copy", "view", "reshape", "global pool"}


class Step(NamedTuple):
    """One node of the graph: `dims` are its result's, batch included (None: not a tensor)."""

    node: fx.Node
    role: str
    module: nn.Module | None
    dims: tuple[int, ...] | None

    @property
    def elements(self) -> int:
        return math.prod(self.dims) if self.dims is not None else 0


class Graph(fx.Interpreter):
    """`module` in inference mode at batch 1 over an input of `shape`; `steps` are its nodes in the order they run in.

    The module is left as it was (weights, mode, device). Raises OptionError naming the resolution, or the channels,
    that the module cannot take, MnetError where torch.fx cannot follow it.
    """

    def __init__(self, module: nn.Module, shape: Shape):
        self.title = type(module).__name__
        # Same structure, shapes for weights: nothing large is copied.
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
        }
        memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
        shell = copy.deepcopy(module, memo).eval()
        try:
            graph = _Tracer().trace(shell)
        except (fx.proxy.TraceError, *MISFITS) as error:
            raise MnetError(
                f"torch.fx cannot follow the forward of {self.title}: {one_line(error)}; "
                "costs need one that does not branch on values"
            ) from error
        super().__init__(shell, graph=graph)
        self.extra_traceback = False
        self.steps: dict[fx.Node, Step] = {}
        try:
            self._run(shape)
        except MISFITS as error:
            raise self._misfit(shape, error) from None

    def run_node(self, n: fx.Node) -> Any:
        self.now = n
        result = super().run_node(n)
        first = result[0] if isinstance(result, tuple) and result else result  # attention gives (map, None)
        module = self.submodules.get(str(n.target)) if n.op == "call_module" else None
        dims = tuple(first.shape) if isinstance(first, Tensor) else None
        self.steps[n] = Step(n, _role(n, module), module, dims)
        return result

    def inputs(self, step: Step) -> list[Step]:
        """The steps whose tensors this one reads."""
        return [self.steps[n] for n in step.node.all_input_nodes if self.steps[n].dims is not None]

    def _run(self, shape: Shape) -> None:
        self.steps = {}
        with torch.no_grad():
            self.run(torch.empty(1, shape.channels, shape.height, shape.width, device="meta"))

    def _misfit(self, shape: Shape, error: Exception) -> OptionError:
        """The error for an input that the module cannot take."""
        module = self.submodules.get(str(self.now.target))
        (source, *_), _ = self.fetch_args_kwargs_from_env(self.now)
        if isinstance(module, nn.Conv2d) and source.shape[1] != module.in_channels:
            return OptionError("in_channels", shape.channels, f"{self.title} was built for {module.in_channels}")
        side: object = shape.height if shape.height == shape.width else f"{shape.height}x{shape.width}"
        what = self.now.target if isinstance(self.now.target, str) else getattr(self.now.target, "__name__", "a step")
        where = "" if what == "_assert" else f" at {what}"
        smallest = self._smallest(shape)
        remedy = f"use {smallest} or more" if smallest else "use the resolution it was built for"
        return OptionError("resolution", side, f"{self.title} cannot take it{where}: {one_line(error)}; {remedy}")

    def _smallest(self, shape: Shape) -> int | None:
        """The smallest square side up to 32 times the present one that can be taken, by halving the interval."""
        low = min(shape.height, shape.width)
        high = next((low * 2**n for n in range(1, 6) if self._takes(shape.channels, low * 2**n)), None)
        while high is not None and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._takes(shape.channels, middle) else (middle, high)
        return high

    def _takes(self, channels: int, side: int) -> bool:
        try:
            self._run(Shape(channels, side, side))
        except MISFITS:
            return False
        return True


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Our own subclasses of a layer branch on shapes in their forward; to the costs they are that layer.
        return isinstance(m, nn.Conv2d | nn.Linear | nn.LayerNorm) or super().is_leaf_module(m, module_qualified_name)


def _role(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return next((role for types, role in MODULE_ROLES if isinstance(module, types)), "unknown")
    if node.op in ("call_function", "call_method"):
        return FUNCTION_ROLES.get(getattr(node.target, "__name__", str(node.target)), "unknown")
    return node.op


def one_line(error: Exception) -> str:
    """The first line of an error of torch, without its full stop and without the stand-ins of a trace."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r" but got Proxy\(\w+\)", "", line).rstrip(" .:!")


def window(step: Step) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and dilation of a convolution or pool, each (height, width)."""
    if step.module is not None:
        module: Any = step.module
        kernel, stride, dilation = module.kernel_size, module.stride, getattr(module, "dilation", 1)
    else:
        args, given = [*step.node.args, None, None], step.node.kwargs
        kernel = given.get("kernel_size", args[1])
        stride, dilation = given.get("stride", args[2]) or kernel, given.get("dilation", 1)
    return _pair(kernel), _pair(stride), _pair(dilation)


def _pair(value: Any) -> Pair:
    height, width = value if isinstance(value, tuple | list) else (value, value)
    return int(height), int(width)


# ---------------------------------------------------------------- memory


def peak(graph: Graph) -> int:
    """The most elements alive at one time; the rules are those of `traced.peak_activations`."""
    order = {node: place for place, node in enumerate(graph.steps)}
    sizes: list[int] = []  # of each storage, 0 once nothing uses it
    ends: list[int] = []  # the last place that uses it
    storage: dict[fx.Node, int] = {}
    largest = 0
    for place, step in enumerate(graph.steps.values()):
        inputs = [i for i in graph.inputs(step) if i.node in storage]
        if step.dims is not None and step.role != "output" and (inputs or step.role == "placeholder"):
            own = _taken_over(step, inputs, storage, ends, place)
            if own is None:
                own = len(sizes)
                sizes.append(step.elements)
                ends.append(place)
            storage[step.node] = own
            ends[own] = max([ends[own], *(order[user] for user in step.node.users)])
        largest = max(largest, sum(sizes))
        sizes = [size if end > place else 0 for size, end in zip(sizes, ends, strict=True)]
    return largest


def _taken_over(step: Step, inputs: list[Step], storage: dict[fx.Node, int], ends: list[int], place: int) -> int | None:
    """The storage of an input that the step's result takes over or shares, None where it needs its own."""
    if step.role == "view":
        return storage[inputs[0].node] if inputs else None
    candidates = inputs if step.role == "sum" else inputs[:1] if step.role in IN_PLACE else []
    free = [storage[i.node] for i in candidates if i.elements == step.elements and ends[storage[i.node]] <= place]
    return free[0] if free else None


# ---------------------------------------------------------------- receptive field


def field_of_view(graph: Graph) -> int | None:
    """Pixels along the longer side that the last feature map's pixel sees; the rules are those of
    `traced.receptive_field`.
    """
    # (field, jump) in input pixels of each step that is a feature map
    fields: dict[fx.Node, tuple[Pair, Pair]] = {}
    for step in graph.steps.values():
        maps = [fields[i.node] for i in graph.inputs(step) if i.node in fields]
        if step.role == "attention":
            return None
        if step.role == "placeholder":
            fields[step.node] = (1, 1), (1, 1)
        elif step.dims is not None and maps and step.role != "output" and not _ends_map(step, graph.inputs(step)[0]):
            if step.role not in KEEPS_FIELD | {"conv", "pool"}:
                return None
            (tall, down), (wide, right) = (
                (max(field[axis] for field, _ in maps), max(jump[axis] for _, jump in maps)) for axis in (0, 1)
            )
            if step.role in ("conv", "pool"):
                kernel, stride, dilation = window(step)
                tall, wide = tall + dilation[0] * (kernel[0] - 1) * down, wide + dilation[1] * (kernel[1] - 1) * right
                down, right = down * stride[0], right * stride[1]
            fields[step.node] = (tall, wide), (down, right)
    return max(max(field) for field, _ in fields.values())


def _ends_map(step: Step, source: Step) -> bool:
    """Whether no feature map comes out: fewer than 4 axes, or a pool to 1x1 or to another fixed size."""
    dims = step.dims or ()
    return len(dims) < 4 or (step.role == "global pool" and (dims[2:] == (1, 1) or dims != source.dims))
