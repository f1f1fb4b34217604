"""What a network costs, as values: read from its description by `complexity`, or traced by `traced`."""

from __future__ import annotations

from dataclasses import dataclass

from mnet_search.models.arch import Shape

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Costs:
    """What a network costs before it is trained.

    `params` trainable parameters; `mult_adds` at batch 1; `activations` output elements of convolutions and linear
    layers; `peak_activations` the most feature-map elements alive at once; `weight_bytes` parameters and batch-norm
    statistics in float32; `receptive_field` the side, in input pixels, of what one pixel of the last feature map before
    global pooling or flattening sees (0 where it is not defined).
    """

    params: int = 0
    mult_adds: int = 0
    activations: int = 0
    peak_activations: int = 0
    weight_bytes: int = 0
    receptive_field: int = 0


@dataclass(frozen=True)
class LayerCosts:
    """One primitive of the network: its state-dict name, the stage it belongs to (the first part of the name), what it
    is, its shapes, its costs, and its weights without bias.
    """

    name: str
    stage: str
    kind: str
    input: Shape
    output: Shape
    costs: Costs
    weights: int = 0
