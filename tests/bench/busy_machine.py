"""Tokens a second of an answer beside programs that keep some or all cores busy, for ways in which threads wait for each other.

    python tests/bench/busy_machine.py                       the default bundle; 0, 1, … all cores busy
    python tests/bench/busy_machine.py --repeats 3 --limit 60

`libgomp` is its own default (it spins for milliseconds), `ours` what the runtime sets, `asleep` OMP_WAIT_POLICY=passive. Each
is a process of its own. An answer that takes longer than --limit seconds is given up. The document goes to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

QUESTION = (
    "Lena had 136 euros. She spent 124 of them on a bicycle. How many tickets of 3 euros can she buy with what is left?"
)
WAYS = {"libgomp": {"GOMP_SPINCOUNT": "300000"}, "ours": {}, "asleep": {"OMP_WAIT_POLICY": "passive"}}
_ANSWERS = f"""
import sys, time, mindmerger
model = mindmerger.load(threads=int(sys.argv[1]))
speeds = []
for repeat in range(1 + int(sys.argv[2])):
    start = time.perf_counter()
    stream = model.generate({QUESTION!r}, max_new_tokens=48, calculator=False)
    for _ in stream:
        pass
    speeds.append(len(stream.result.token_ids) / (time.perf_counter() - start))
print(sorted(speeds[1:])[len(speeds[1:]) // 2])
"""


def speed(way: dict[str, str], threads: int, repeats: int, limit: float) -> float | None:
    """Median tokens per second of whole answers, the first left out; None where it took too long."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", _ANSWERS, str(threads), str(repeats)]
    try:
        done = subprocess.run(
            command, env={**kept, **way}, stdout=subprocess.PIPE, text=True, timeout=limit, check=True
        )
    except subprocess.TimeoutExpired:
        return None
    return round(float(done.stdout), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for all answers of one process")
    options = parser.parse_args()
    found = []
    for busy in range(cores + 1):
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            row = {name: speed(way, options.threads, options.repeats, options.limit) for name, way in WAYS.items()}
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        found.append({"busy cores": busy, **row})
        print(found[-1], file=sys.stderr)
    json.dump({"threads": options.threads, "tokens per second": found}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
