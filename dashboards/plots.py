"""Every plot of a study, each as two functions: what is shown (an info of plain data) and how (a plotly figure).

The info function takes a `Snapshot` and its options, and does all the choosing, thinning, sorting and wording; its
result is a frozen dataclass that tests compare with `==`. The figure function draws that and decides nothing. What
they share is in `drawing.py` and `quantities.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go

from mnet_search.dashboards.distribution_plots import errors_figure, errors_info, states_figure, states_info
from mnet_search.dashboards.history_plots import (
    hypervolume_figure,
    hypervolume_info,
    timeline_figure,
    timeline_info,
)
from mnet_search.dashboards.importance_plot import importance_figure, importance_info, slice_figure, slice_info
from mnet_search.dashboards.latency_plot import drift_figure, drift_info, latency_figure, latency_info
from mnet_search.dashboards.learning_curves import curves_figure, curves_info
from mnet_search.dashboards.parallel_lines import lines_figure
from mnet_search.dashboards.parallel_plot import parallel_info
from mnet_search.dashboards.pareto_figure import pareto_figure
from mnet_search.dashboards.pareto_plot import pareto_info
from mnet_search.dashboards.scaling_view import (
    heat_figure,
    heat_info,
    scaling_figure,
    scaling_info,
    shapes_figure,
    shapes_info,
)
from mnet_search.dashboards.snapshot import Snapshot


@dataclass(frozen=True)
class Plot:
    """A row of PLOTS: the heading, what is shown, how it is drawn. The options are those of the info function."""

    title: str
    info: Callable[..., Any]
    figure: Callable[[Any], go.Figure]

    def draw(self, snapshot: Snapshot, **options: Any) -> go.Figure:
        """PlotError for options that name what the study does not have."""
        return self.figure(self.info(snapshot, **options))


# To add a plot, write its two functions in a file beside this one and its row here.
PLOTS = {
    "pareto": Plot("The front", pareto_info, pareto_figure),
    "pareto_latency": Plot("Accuracy and latency", partial(pareto_info, x="latency_ms"), pareto_figure),
    "pareto_params": Plot("Accuracy and parameters", partial(pareto_info, x="params"), pareto_figure),
    "pareto_mult_adds": Plot("Accuracy and multiply-adds", partial(pareto_info, x="mult_adds"), pareto_figure),
    "hypervolume": Plot("Hypervolume", hypervolume_info, hypervolume_figure),
    "curves": Plot("Learning curves", curves_info, curves_figure),
    "parallel": Plot("Parallel coordinates", parallel_info, partial(lines_figure, kept={})),
    "importance": Plot("Which parameters decide", importance_info, importance_figure),
    "slice": Plot("One parameter", slice_info, slice_figure),
    "scaling": Plot("Error and size", scaling_info, scaling_figure),
    "heat": Plot("Two parameters", heat_info, heat_figure),
    "shapes": Plot("Thinner, shallower or of lower resolution", shapes_info, shapes_figure),
    "latency": Plot("Latency, predicted and measured", latency_info, latency_figure),
    "drift": Plot("Drift of the machine", drift_info, drift_figure),
    "timeline": Plot("What ran when", timeline_info, timeline_figure),
    "errors": Plot("Errors of all networks", errors_info, errors_figure),
    "states": Plot("Trials by state", states_info, states_figure),
}
