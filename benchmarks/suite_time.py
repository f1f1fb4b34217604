"""How long the default test suite takes, and which tests take it.

    python benchmarks/suite_time.py [pytest arguments]

Wall time counts the start of Python and the collection too: it is what a developer waits.
"""

from __future__ import annotations

import subprocess
import sys
import time

from help_time import machine, versions


def main() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--durations=15", *sys.argv[1:]], check=False)
    print(f"suite               {time.perf_counter() - start:.0f} s (n = 1), pytest ended with {done.returncode}")
    print(f"{machine()}; {versions('mnet-search', 'pytest', 'torch', 'ray')}")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
