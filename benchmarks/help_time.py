"""How long `mnet-search --help` takes, against the same Python doing nothing.

    python benchmarks/help_time.py

Both run in turn, so that a busy machine slows both: the ratio travels between machines, the seconds do not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path


def machine() -> str:
    """One line: processor, cores, load, operating system, Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    system = f"{platform.platform()}; Python {platform.python_version()}"
    return f"{processor or platform.machine()}, {os.cpu_count()} cores, {load}; {system}"


def versions(*packages: str) -> str:
    """Installed versions, one line."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def seconds(command: list[str]) -> float:
    """Wall time of one run, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    """Median with quartiles and n."""
    first, median, third = statistics.quantiles(values, n=4)
    return f"median {median:.3f} s (quartiles {first:.3f} to {third:.3f}, n = {len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each, after one untimed (default 10)")
    runs = parser.parse_args().runs
    commands = {
        "mnet-search --help": [str(Path(sys.executable).with_name("mnet-search")), "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    # The first run of each reads files from disk and is not counted.
    rounds = [{name: seconds(command) for name, command in commands.items()} for _ in range(runs + 1)][1:]
    for name in commands:
        print(f"{name:20}{spread([times[name] for times in rounds])}")
    ours, nothing = (statistics.median(times[name] for times in rounds) for name in commands)
    print(f"ratio               {ours / nothing:.1f}")
    print(f"{machine()}; {versions('mnet-search', 'typer', 'rich')}")


if __name__ == "__main__":
    main()
