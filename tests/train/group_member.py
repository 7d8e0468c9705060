"""A process of a group that tests start (test_groups.py): it ends as its argument says, and needs no torch for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

RANK = int(os.environ["RANK"])


def main() -> None:
    what = sys.argv[1]
    if what == "wait":
        note = Path(sys.argv[2]) / str(RANK)
        try:
            note.write_text("here")
            time.sleep(100)
        except KeyboardInterrupt:
            note.write_text("interrupted")
            sys.exit(130)
    if what == "done" and RANK == 0:
        threads = os.environ["OMP_NUM_THREADS"]
        print(f"0 of {os.environ['WORLD_SIZE']} with {threads} thread")
    if what == "both fail":
        print(f"process {RANK} says no", file=sys.stderr)
        sys.exit(7)
    if what == "the second fails":
        if RANK == 0:
            time.sleep(100)
        print("process 1 says no", file=sys.stderr)
        sys.exit(9)
    if what == "the first is killed":
        if RANK == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)


if __name__ == "__main__":
    main()
