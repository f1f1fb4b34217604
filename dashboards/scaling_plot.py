"""A scaling law as a page of its own, with both of its figures."""

from __future__ import annotations

import html

from plotly.offline import get_plotlyjs

from mnet_search.dashboards.fit_plot import REST as REST
from mnet_search.dashboards.fit_plot import STEPS as STEPS
from mnet_search.dashboards.fit_plot import STYLES as STYLES
from mnet_search.dashboards.fit_plot import FitInfo, fit_figure, residual_figure
from mnet_search.dashboards.fit_plot import Group as Group
from mnet_search.dashboards.fit_plot import Observed as Observed
from mnet_search.dashboards.fit_plot import fit_info as fit_info
from mnet_search.dashboards.report import GRAPH_CONFIG, POLICY, STYLE


def fit_page(info: FitInfo) -> str:
    """Both figures as one HTML file that asks for nothing from outside, and the browser holds it to that."""
    cards = "".join(
        f'<section class="card wide"><h2>{heading}</h2>'
        + figure.to_html(
            full_html=False, include_plotlyjs=False, config=GRAPH_CONFIG, default_height="480px", div_id=name
        )
        + "</section>\n"
        for name, heading, figure in (
            ("fit", "The law, with the 95 % band of its mean", fit_figure(info)),
            ("residuals", "What the law leaves over", residual_figure(info)),
        )
    )
    title = html.escape(info.title)
    words = "".join(f"<p>{html.escape(line)}</p>" for line in (info.equation, info.summary))
    words += "".join(f'<p class="soft">Warning: {html.escape(line)}</p>' for line in info.doubts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · mnet-search</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f'<body><main><h1>{title}</h1>{words}\n<div class="cards">{cards}</div></main></body></html>\n'
    )
