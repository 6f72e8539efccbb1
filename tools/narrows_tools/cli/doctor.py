"""`narrows doctor`: what is installed, what this machine has, and whether a server could run here."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrows_tools.doctor.report import Report

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    command = commands.add_parser(
        "doctor",
        help="check this installation and machine",
        description="Lists the packages, really loads ONNX Runtime with each of its providers and FAISS, looks at CPU, "
        "cores and memory, and opens a bundle and an index if you name them. Exits 0 if a server could run here, and 1 "
        "with the reasons if not. It asks nothing of any network.",
        epilog="example: narrows doctor --bundle nq.bundle --index wiki.index",
    )
    command.add_argument("--bundle", type=Path, help="open this bundle, too")
    command.add_argument("--index", type=Path, help="open this index, too (with --bundle, as a server would)")
    command.add_argument("--json", action="store_true", help="print everything as one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examines and prints."""
    from narrows_tools.doctor.report import examine

    report = examine(options.bundle, options.index)
    if options.json:
        print(json.dumps({**asdict(report), "device": report.device, "can_serve": report.can_serve}))
    else:
        print("\n".join(lines(report)))
    return 0 if report.can_serve else 1


def lines(report: "Report") -> list[str]:
    """The report for people."""
    from narrows_tools.doctor.report import mib

    here, onnxruntime, faiss = report.machine, report.onnxruntime, report.faiss
    rows = [("narrows", report.narrows), ("python", report.python), ("system", here.system)]
    for extra in dict.fromkeys(package.extra for package in report.packages):
        packages = [package for package in report.packages if package.extra == extra]
        present = [f"{package.distribution} {package.version}" for package in packages if package.version]
        missing = [package.distribution for package in packages if not package.version]
        text = ", ".join(present) or "none"
        if missing:
            text += f"; missing {', '.join(missing)}: pip install 'narrows{f'[{extra}]' if extra else ''}'"
        rows.append((f"narrows[{extra}]" if extra else "base install", text))
    loaded = [provider.name for provider in onnxruntime.providers if provider.loads]
    cuda = f", built for CUDA {onnxruntime.cuda}" if onnxruntime.cuda else ""
    text = f"{onnxruntime.version}{cuda}; loads {', '.join(loaded) or 'no provider'}"
    rows.append(("ONNX Runtime", f"does not load: {onnxruntime.error}" if onnxruntime.error else text))
    rows += [
        ("", f"{provider.name} does not load: {provider.why}") for provider in onnxruntime.providers if provider.why
    ]
    text = f"{faiss.version}; {' '.join(faiss.compile_options)}; {faiss.gpus} GPUs"
    rows.append(("FAISS", f"does not load: {faiss.error}" if faiss.error else text))
    limit = f", at most {here.limits.cores:g} at once" if here.limits.cores is not None else ""
    rows.append(("CPU", f"{here.cpu.model}; {here.cores} cores{limit}; {' '.join(here.cpu.flags) or 'flags unknown'}"))
    limit = f", at most {mib(here.limits.memory_bytes)} here" if here.limits.memory_bytes is not None else ""
    rows.append(("memory", f"{mib(here.memory_bytes)}, {mib(here.available_bytes)} free{limit}"))
    cards = "; ".join(f"{card.number}: {card.name}, {mib(card.total_bytes)}" for card in report.gpus.cards)
    rows.append(
        ("GPU", report.gpus.error or f"{cards or 'none'}; the driver runs CUDA up to {report.gpus.newest_cuda}")
    )
    rows.append(("--device auto", report.device))
    for artifact in report.artifacts:
        text = f"{artifact.path}: {artifact.holds}, {mib(artifact.size_bytes)}"
        rows.append((artifact.kind, f"{artifact.path} does not open" if artifact.error else text))
    rows += [(finding.level.upper(), finding.text) for finding in report.findings]
    verdict = "A server can run here." if report.can_serve else "A server cannot run here; the problems say why."
    return [f"{name:<15} {text}".rstrip() for name, text in rows] + ["", verdict]
