"""Compare rules with tuned AdamW on a suite: one markdown table, as model cards show it.

python examples/benchmarks/compare.py base                        # the embedded rule, on the digits
python examples/benchmarks/compare.py base start --data FILE.npz  # beside the same rule at fresh θ, on your images
"""

from __future__ import annotations

import argparse

import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.comparison import ADAMW, compare, score, table
from lightning_lopt.evaluation.suites import make_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="+", help="embedded rules or folders; 'start' is the first one at fresh θ")
    parser.add_argument("--suite", default="images")
    parser.add_argument("--data", nargs="+", default=["digits"], help="digits, npz files or folders of IDX files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--baselines", default=None, help="JSON file that keeps the tuned baselines")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rules = {name: load_rule(name) for name in arguments.rules if name != "start"}
    if "start" in arguments.rules:
        first = next(iter(rules.values()))
        rules["start"] = type(first)(**first.config)
    baselines = Baselines(arguments.baselines, arguments.seeds)
    names = [*arguments.rules, ADAMW]
    rows = []
    for row in compare(rules, make_suite(arguments.suite, arguments.data), baselines=baselines):
        rows.append(row)
        ratios = ", ".join(f"{name} {row.log_ratio(name, ADAMW):+.3f}" for name in rules)
        print(f"{row.problem}: log-ratio of final training loss to tuned AdamW's: {ratios}", flush=True)
    print("\n" + table(rows, names))
    for name in rules:
        print(f"score of {name} against tuned AdamW: {score(rows, name, ADAMW):+.3f} (below 0 is better)")


if __name__ == "__main__":
    main()
