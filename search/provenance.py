"""Where a study's figures come from: versions, code, machine, data."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("mnet-search", "torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn", "sqlalchemy")


def collect(command: Sequence[str]) -> dict[str, Any]:
    """Versions of what takes part, the git commit of the working directory (with `+` where files are changed), machine
    and command.
    """
    return {
        "command": " ".join(command),
        "started": datetime.now().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with a `+` where files differ from it; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
