"""Contract 2: on a CPU a text has one embedding, bit for bit, whatever it shares a batch with. And the golden file."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_dpr
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.bundle import Bundle, Role
from narrows.encoder import Encoder, Golden, load_encoder
from narrows.errors import BundleError
from narrows.padding import pad_right
from narrows.tokenizer import TokenIds, TowerTokenizer
from narrows_export import checkpoint, corpus, graph, source

PAD = 0


@dataclasses.dataclass(frozen=True)
class Model:
    """One exported graph, with one and with two threads."""

    one_thread: Encoder
    two_threads: Encoder
    vocabulary_size: int

    @classmethod
    def load(cls, file: Path, vocabulary_size: int) -> "Model":
        return cls(Encoder(file, PAD, threads=1), Encoder(file, PAD, threads=2), vocabulary_size)

    def text(self, tokens: int, seed: int) -> TokenIds:
        """Ids of the whole vocabulary, none of them padding."""
        return np.random.default_rng([seed, tokens]).integers(1, self.vocabulary_size, tokens)


def model_of(bundle: Bundle, role: Role) -> Model:
    tower = bundle.tower(role)
    return Model.load(bundle.file(tower, tower.variants["fp32"].file), tower.tokenizer.vocabulary_size)


@pytest.fixture(scope="module", params=["question", "context", "projection", "minilm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Model:
    """Small towers with CLS pooling, one of them with a projection; and a real one with mean pooling."""
    if request.param == "minilm":
        return model_of(request.getfixturevalue("minilm_bundle"), "question_encoder")
    if request.param == "projection":
        base = tmp_path_factory.mktemp("projection")
        directory = write_dpr(base / "tower", "question_encoder", vocabulary, seed=3, projection_dim=48)
        tower = checkpoint.load(source.resolve(str(directory)), "question_encoder", None)
        graph.export_fp32(tower, base / "model.onnx")
        return Model.load(base / "model.onnx", len(vocabulary))
    return model_of(request.getfixturevalue("small_bundle"), f"{request.param}_encoder")


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Lengths of texts, the order they get, and the length of one more text that pads them (0: none)."""
    lengths = draw(st.lists(st.integers(1, 200), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(lengths))))
    return lengths, order, draw(st.sampled_from([0, max(lengths), 256]))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(batch=batches(), seed=st.integers(0, 999))
def test_an_embedding_does_not_depend_on_its_batch(model: Model, batch: tuple[list[int], list[int], int], seed: int):
    lengths, order, padding = batch
    texts = [model.text(tokens, seed + place) for place, tokens in enumerate(lengths)]
    alone = [model.one_thread.encode([text])[0].tobytes() for text in texts]
    together = [texts[place] for place in order] + ([model.text(padding, seed)] if padding else [])
    for encoder in (model.one_thread, model.two_threads):
        embeddings = encoder.encode(together)
        assert [embeddings[row].tobytes() for row in range(len(order))] == [alone[place] for place in order]


@pytest.mark.parametrize("size", [2, 7, 16, 33, 64])
def test_embeddings_are_the_same_in_batches_of_many_questions(model: Model, size: int):
    texts = [model.text(3 + place % 14, place) for place in range(size)]
    alone = np.concatenate([model.two_threads.encode([text]) for text in texts])
    assert np.array_equal(model.one_thread.encode(texts), alone)
    assert np.array_equal(model.two_threads.encode(texts), alone)
    assert np.array_equal(model.two_threads.encode(texts[::-1]), alone[::-1])


def test_real_passages_have_one_embedding(small_bundle: Bundle):
    tower = small_bundle.tower("context_encoder")
    tokenizer = TowerTokenizer.load(
        small_bundle.file(tower, tower.tokenizer_file), tower.tokenizer, max_tokens=tower.max_tokens
    )
    model = model_of(small_bundle, "context_encoder")
    texts = [t.ids for t in tokenizer.passages([(p.title, p.text) for p in corpus.passages("en")[:24]])]
    alone = np.concatenate([model.one_thread.encode([text]) for text in texts])
    assert np.array_equal(model.two_threads.encode(texts), alone)
    assert len(np.unique(alone, axis=0)) == len(texts)


def test_an_embedding_does_depend_on_its_text_and_its_order(model: Model):
    text = model.text(12, seed=5)
    other = text.copy()
    other[6] = other[6] % (model.vocabulary_size - 1) + 1
    swapped = text.copy()
    swapped[[3, 8]] = swapped[[8, 3]]
    embeddings = model.one_thread.encode([text, other, swapped])
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3
    assert np.abs(embeddings[0] - embeddings[2]).max() > 1e-3


def test_pad_right():
    texts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 10])]
    ids, mask = pad_right(texts, pad_id=1)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_pad_right_adds_nothing_to_texts_of_one_length():
    ids, mask = pad_right([np.array([5, 6]), np.array([7, 8])], pad_id=0)
    assert ids.tolist() == [[5, 6], [7, 8]]
    assert mask.all()


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), pad_id=st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_pad_right_keeps_every_token(lengths: list[int], pad_id: int):
    texts = [np.arange(100, 100 + length) for length in lengths]
    ids, mask = pad_right(texts, pad_id)
    assert ids.shape == mask.shape == (len(texts), max(lengths))
    for row, text in enumerate(texts):
        assert ids[row][mask[row] == 1].tolist() == text.tolist()
        assert set(ids[row][mask[row] == 0]) <= {pad_id}


def test_golden_round_trip(tmp_path: Path):
    token_ids = (np.array([101, 7, 102]), np.array([101]), np.array([101, 8, 9, 10, 102]))
    embeddings = np.random.default_rng(0).standard_normal((3, 16), dtype=np.float32)
    Golden(token_ids, embeddings).save(tmp_path / "golden.npz")
    loaded = Golden.load(tmp_path / "golden.npz")
    assert [ids.tolist() for ids in loaded.token_ids] == [ids.tolist() for ids in token_ids]
    assert {ids.dtype for ids in loaded.token_ids} == {np.dtype(np.int64)}
    assert loaded.embeddings.tobytes() == embeddings.tobytes()
    assert loaded.embeddings.shape == embeddings.shape


@pytest.mark.parametrize("role", ["question_encoder", "context_encoder"])
def test_the_golden_embeddings_are_reproduced_bit_for_bit(small_bundle: Bundle, role: Role):
    tower = small_bundle.tower(role)
    encoder = load_encoder(small_bundle, role, "fp32", PAD, threads=2)
    golden = Golden.load(small_bundle.file(tower, tower.variants["fp32"].golden_file))
    assert np.array_equal(encoder.encode(golden.token_ids), golden.embeddings)


def test_an_encoder_that_misses_its_golden_embeddings_is_refused(small_bundle: Bundle, tmp_path: Path):
    path = tmp_path / "changed.bundle"
    shutil.copytree(small_bundle.path, path)
    changed = Bundle(path, small_bundle.manifest)
    tower = changed.tower("question_encoder")
    file = changed.file(tower, tower.variants["fp32"].golden_file)
    golden = Golden.load(file)
    last = len(golden.token_ids) - 1
    for wrong in (golden.embeddings[last] + 2e-4, np.full(golden.embeddings.shape[1], np.nan, np.float32)):
        embeddings = golden.embeddings.copy()
        embeddings[last] = wrong
        Golden(golden.token_ids, embeddings).save(file)
        with pytest.raises(BundleError, match=r"variant fp32 of the question_encoder .* is off by"):
            load_encoder(changed, "question_encoder", "fp32", PAD, threads=1)


def test_an_unknown_variant_is_refused(small_bundle: Bundle):
    with pytest.raises(BundleError, match=r"has no variant int8 of its context_encoder; it has fp32"):
        load_encoder(small_bundle, "context_encoder", "int8", PAD, threads=1)


def test_a_damaged_graph_is_refused(small_bundle: Bundle, tmp_path: Path):
    tower = small_bundle.tower("question_encoder")
    data = small_bundle.file(tower, tower.variants["fp32"].file).read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded by ONNX Runtime"):
        Encoder(tmp_path / "model.onnx", PAD, threads=1)
