"""The wheel in fresh virtual environments: what the base install brings, and that it is enough for the client."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BASE = {"grpcio", "narrows", "numpy", "pip", "protobuf", "setuptools", "typing_extensions"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_base_install_is_the_client_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(REPOSITORY)], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    installed = {line.split("==")[0].replace("-", "_") for line in listed.splitlines()}
    assert installed <= BASE, installed - BASE
    code = "import narrows; narrows.Client('localhost:1').close(); print(narrows.__version__)"
    subprocess.run([python, "-W", "error", "-c", code], check=True, cwd=tmp_path)
    narrows = str(tmp_path / "venv" / "bin" / "narrows")
    subprocess.run([narrows, "search", "--help"], check=True, cwd=tmp_path)
    failed = subprocess.run(
        [narrows, "serve", "--bundle", "x"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert failed.returncode == 1
    assert "narrows[cpu]" in failed.stderr
    examined = subprocess.run([narrows, "doctor"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert examined.returncode == 1
    assert "a server needs onnxruntime: pip install 'narrows[cpu]'" in examined.stdout
    assert "a server needs faiss-cpu: pip install 'narrows[cpu]'" in examined.stdout
    assert examined.stderr == ""
