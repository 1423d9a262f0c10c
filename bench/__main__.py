"""python -m bench: runs the scripts of this directory, prints a table, writes JSON.

What each script asks, and how to read the answers: README.md.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import imports, mounts
from bench.datasets import Scale
from bench.harness import Report, machine, refuse_unfair_python

SCRIPTS = {"imports": imports.measure, "mounts": mounts.measure}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of everything, one round")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all values there")
    parser.add_argument("--scale", type=float, metavar="F", help="how much of everything (1.0)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each comparison (5)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="work below DIR")
    parser.add_argument("--only", choices=sorted(SCRIPTS), action="append", help="only this script")
    arguments = parser.parse_args()
    refuse_unfair_python()
    scale = arguments.scale or (1 / 16 if arguments.quick else 1.0)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    directory = Path(tempfile.mkdtemp(prefix="dedupfs-bench-", dir=arguments.directory))
    settings = {"scale": f"{scale:g}", "rounds": str(rounds), "cache": "sources warm, mounts fresh"}
    report = Report(machine(directory), settings)
    for name, value in {**report.machine, **settings}.items():
        print(f"{name:<12} {value}")
    try:
        for name in arguments.only or SCRIPTS:
            print(f"\n--- {name} ---", flush=True)
            SCRIPTS[name](report, directory, Scale(scale), rounds)
    finally:
        if arguments.json:
            report.write(arguments.json)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
