"""``make chaos``: a run of CHAOS_SECONDS (600) by CHAOS_SEED, and its report."""

import asyncio
import os
import secrets
import shutil
import sys
from pathlib import Path

from tests.chaos.report import markdown
from tests.chaos.run import Plan, run
from tests.chaos.schedule import draw

FAULTS_PER_SECOND = 0.9


def main() -> int:
    seconds = float(os.environ.get("CHAOS_SECONDS") or 600)
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    folder = Path(os.environ.get("CHAOS_DIR") or f".data/chaos/{seed}").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stdout.write(f"seed {seed}, {seconds:g} s, in {folder}\n")
    sys.stdout.flush()
    faults = draw(seed, seconds, per_second=FAULTS_PER_SECOND)
    outcome = asyncio.run(run(Plan(seed=seed, seconds=seconds, faults=faults), folder))
    sys.stdout.write(markdown(outcome))
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
