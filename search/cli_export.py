"""`mnet-search export`: networks as files that run elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from mnet_search.models.arch import MnetError
from mnet_search.search.cli_options import DEFAULT_STORAGE, AsJson, Limits, Storage, StudyArg, open_store

app = typer.Typer()


@app.command()
def export(
    study: StudyArg,
    trial: Annotated[int | None, typer.Option("--trial", help="this trial")] = None,
    best_one: Annotated[bool, typer.Option("--best", help="the best one, within --max")] = False,
    whole_front: Annotated[
        bool, typer.Option("--front", help="every member of the front, with index.json and index.md")
    ] = False,
    limits: Limits = None,
    formats: Annotated[
        str, typer.Option("--format", help="of config, weights, torch_export, onnx, executorch, card")
    ] = "config,weights,card",
    int8: Annotated[
        bool, typer.Option("--int8", help="with onnx: a second file with 8-bit weights and activations")
    ] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="folder or URL to write to", metavar="DIR")] = "exports",
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Write a trained network as files: training config, weights, ONNX, a model card and more. ONNX and ExecuTorch
    files are compared with torch on the validation images, and not written where they differ.
    """
    from mnet_search.search import show, show_export
    from mnet_search.studies.export import Asked
    from mnet_search.studies.trained import FromData

    chosen = [str(trial)] * (trial is not None) + ["best"] * best_one + ["front"] * whole_front
    if len(chosen) != 1:
        raise MnetError("say which network: one of --trial N, --best or --front")
    from_data = FromData(show_export.images_of, show_export.licence_of)
    asked = Asked(tuple(formats.split(",")), int8=int8, index=whole_front, force=force, from_data=from_data)
    with open_store(storage) as store:
        show_export.exported(store, study, chosen[0], show.parse_limits(limits or []), output, asked, as_json=as_json)
