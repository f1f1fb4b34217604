"""The index of an export: every network with its files, costs, accuracy and what the checks found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mnet_search.studies.database import to_json
from mnet_search.studies.model_card import facts_of
from mnet_search.studies.trained import Made, Trained

NAMES = ("index.json", "index.md")


def entry(trained: Trained, made: Sequence[Made]) -> dict[str, Any]:
    """One network as plain values; accuracies are shares, latencies milliseconds."""
    return {
        "trial": trained.number,
        "arch_id": trained.config["arch"]["arch_id"],
        "family": trained.config["arch"]["family"],
        "seed": trained.config["seed"],
        **trained.config["measured"],
        "files": [f"{trained.stem}{one.suffix}" for one in made],
        **facts_of(made),
    }


def as_json(study: str, entries: Sequence[Mapping[str, Any]]) -> str:
    content = json.loads(to_json({"study": study, "networks": list(entries)}))
    return json.dumps(content, indent=2) + "\n"


def as_markdown(study: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """The same for people, in the order of the front."""
    head = [
        "trial",
        "network",
        "accuracy",
        "params",
        "mult-adds",
        "latency, ms",
        "ONNX beside torch",
        "8 bits",
        "files",
    ]
    lines = [f"# Networks of study {study}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in entries:
        parity, small = row.get("parity"), row.get("int8")
        cells = [
            str(row["trial"]),
            f"{row['family']} `{row['arch_id']}`",
            f"{row['accuracy']:.2%}" if "accuracy" in row else "-",
            f"{row['params']:,}",
            f"{row['mult_adds']:,}",
            f"{row['latency_ms']:.3g}" if "latency_ms" in row else "-",
            f"within {parity['max_difference']:.1e}" if parity else "-",
            f"{small['accuracy_int8']:.2%}" if small else "-",
            ", ".join(f"[{name}]({name})" for name in row["files"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nAccuracy is of validation images, one run each; params and mult-adds are exact.\n"
