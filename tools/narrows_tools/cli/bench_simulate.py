"""`narrows bench simulate`: the scheduler alone, on measured costs."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from narrows.errors import SettingsError
from narrows_tools.cli.arguments import check_output, natural, number, positive, threads
from narrows_tools.cli.bars import bars
from narrows_tools.cli.tables import print_rows

if TYPE_CHECKING:
    from narrows_tools.bench.batch_costs import BatchCosts

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")
EXAMPLES = """examples:
  narrows bench simulate --bundle minilm.bundle --threads 1 --save-costs costs.json
  narrows bench simulate --costs costs.json --traffic mixed --loads 0.7 --noise
  narrows bench simulate --costs costs.json --rates 100 200 --json"""


def add(actions: "Commands") -> None:
    """Adds the command and its arguments."""
    command = actions.add_parser(
        "simulate",
        help="the latencies that the scheduler gives on measured batch costs, without any overhead",
        description="Feeds the scheduler of a server with arrivals at random, on a clock that jumps: a batch takes as\n"
        "long as was measured, all else takes no time. What a real server is held against.",
        epilog=EXAMPLES,
    )
    source = command.add_argument_group("what batches cost")
    source.add_argument("--costs", type=Path, metavar="FILE", help="costs saved by --save-costs")
    source.add_argument("--bundle", type=Path, help="measure this bundle's question encoder, here and now")
    source.add_argument("--index", type=Path, help="measure this index too, and let every question be searched for")
    source.add_argument("--variant", default="", metavar="V", help="of the encoder (default: what a server would take)")
    source.add_argument("--threads", type=threads, default=0, metavar="N", help="of the encoder (default: all cores)")
    source.add_argument(
        "--passes", type=positive, default=3, metavar="N", help="times each batch is measured (default: 3)"
    )
    source.add_argument("--save-costs", type=Path, metavar="FILE", help="keep what was measured")
    command.add_argument(
        "--traffic", choices=("short", "mixed"), nargs="+", default=["short", "mixed"], help="default: both"
    )
    load = command.add_mutually_exclusive_group()
    load.add_argument(
        "--loads",
        type=_positive_number,
        nargs="+",
        default=[0.1, 0.5, 0.7, 0.8, 0.95],
        metavar="SHARE",
        help="offered rates as shares of saturation (default: 0.1 0.5 0.7 0.8 0.95)",
    )
    load.add_argument(
        "--rates", type=_positive_number, nargs="+", default=[], metavar="R", help="offered rates in questions/s"
    )
    command.add_argument(
        "--questions", type=positive, default=5000, metavar="N", help="questions in each round (default: 5000)"
    )
    command.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds, a seed each (default: 5)")
    command.add_argument("--seed", type=natural, default=0, metavar="S", help="of the first round (default: 0)")
    command.add_argument(
        "--noise", action="store_true", help="batches take as unequally long as they did when measured"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="the results, for `narrows bench compare`")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run, extra="bench")


def _positive_number(text: str) -> float:
    found = number(text)
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return found


def run(options: argparse.Namespace) -> int:
    """Simulates, and prints a row for each traffic and load: medians over the rounds."""
    if bool(options.costs) == bool(options.bundle):
        raise SettingsError("give either --costs or --bundle")
    if options.costs and (options.index or options.variant or options.threads or options.save_costs):
        raise SettingsError(
            "--index, --variant, --threads and --save-costs go with --bundle: --costs were measured with their own"
        )
    for file in filter(None, (options.save_costs, options.out)):
        check_output(file)
    from narrows_tools.bench import batch_costs, results
    from narrows_tools.bench.simulated_rows import Plan, simulate_plan, table

    found = batch_costs.load(options.costs) if options.costs else _measure(options)
    if options.save_costs:
        batch_costs.save(options.save_costs, found)
    plan = Plan(
        _each_once(options.traffic), _each_once(options.rates), _each_once(options.loads),
        options.questions, options.rounds, options.seed, options.noise,
    )  # fmt: skip
    with bars() as start:
        result = simulate_plan(found, plan, start("simulating", plan.simulations))
    if options.out:
        results.save(options.out, result)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print_rows(table(result.rows))
    return 0


def _each_once(given: Sequence[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(given))


def _measure(options: argparse.Namespace) -> "BatchCosts":
    from narrows.bundle import open_bundle
    from narrows.process import available_cores
    from narrows_tools.bench import batch_costs

    longest = open_bundle(options.bundle).tower("question_encoder").max_tokens
    with bars() as start:
        advance = start("measuring batches", len(batch_costs.grid(longest)) * options.passes)
        return batch_costs.measure(
            options.bundle,
            options.index,
            options.variant,
            options.threads or available_cores(),
            options.passes,
            lambda: advance(1),
        )
