"""Makes the two small vocabularies and golden.json beside this file: token ids as transformers 4.57 computes them.

    python tests/data/golden_tokenizer/make_golden.py

It trains on the exporter's demo corpus and writes the same bytes on every run with the same packages. Nothing of
Narrows' own tokenizer is used: ids come from DPRQuestionEncoderTokenizerFast and DPRContextEncoderTokenizerFast.
"""

import importlib.metadata
import json
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import DPRContextEncoderTokenizerFast, DPRQuestionEncoderTokenizerFast

from narrows_export import corpus

HERE = Path(__file__).parent
VOCABULARIES = {"en-uncased": ("en", True), "es-cased": ("es", False)}  # name: language, lower-cased
VOCABULARY_SIZE = 2000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Characters that a vocabulary gets whether or not the demo corpus has them.
ASCII = "".join(map(chr, range(33, 127)))
SPANISH = "áéíóúüñÁÉÍÓÚÜÑ¿¡«»ºª"
TYPOGRAPHIC = "‘’“”–—…€°\N{REPLACEMENT CHARACTER}"
OTHER_SCRIPTS = "αβγισςυφοΣжия東京日本語ابحرسعلمאבגוםעשל😀👩"
COMBINING = "\N{COMBINING ACUTE ACCENT}\N{COMBINING TILDE}\N{COMBINING DIAERESIS}"


def train(language: str, lowercase: bool) -> list[str]:
    """Trains a WordPiece vocabulary; returns its tokens in id order."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    passages = corpus.passages(language)
    texts = [f"{passage.title} {passage.text}" for passage in passages]
    texts += [question.question for question in corpus.questions(language)]
    characters = set(normalizer.normalize_str("".join([*texts, ASCII, SPANISH, TYPOGRAPHIC, OTHER_SCRIPTS])))
    alphabet = sorted((characters | set("" if lowercase else COMBINING)) - set(" "))
    tokenizer = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" pieces in the order of a hash map, which differs between runs, and breaks ties by
    # number. Passed as special tokens, they are numbered in the order given.
    continuations = [f"##{c}" for c in alphabet if unicodedata.category(c)[0] in "LMN" or c in OTHER_SCRIPTS]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=SPECIAL + continuations,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def write_checkpoint(directory: Path, vocabulary: list[str], lowercase: bool) -> None:
    """Writes the tokenizer files of a DPR checkpoint."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8", newline="\n")
    config = {
        "do_lower_case": lowercase,
        "model_max_length": 512,
        "tokenizer_class": "DPRQuestionEncoderTokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8", newline="\n")


def strings() -> dict[str, str]:
    """Texts that trip tokenizers, for both vocabularies."""
    accents = "Él año pasado, la cigüeña Ñandú comió piñón en CÓRDOBA, São Paulo, Łódź y Zürich"
    return {
        "empty": "",
        "spaces only": "   ",
        "plain": "who won the most medals at the 2012 Olympics?",
        "no question mark": "capital of France",
        "several question marks": "What???  Really?!",
        "mixed case": "NASA and the iPhone in McDonald's",
        "leading and trailing whitespace": "  \t the river Nile \n ",
        "inner whitespace": "the\tlongest\nriver\r\nof  all\u00a0rivers\u2003here\u2028and\u3000there",
        "carriage return alone": "one\rtwo",
        "nul and bell": "the\x00 ri\x07ver \x1bNile\x7f",
        "zero width space and joiner": "ri\u200bver zero\u200cwidth\u200djoiner",
        "byte order mark": "\ufeffriver\ufeff Nile",
        "replacement character": "ri\ufffdver \ufffd",
        "soft hyphen and direction marks": "ri\u00adver \u202eNile\u202c \u2066x\u2069",
        "private use and unassigned": "a\ue000b \U000f0000 \u0378",
        "emoji": "the river 😀😀 runs 👍🏽",
        "emoji joined": "a family 👩\u200d👩\u200d👧\u200d👦 and ❤\ufe0f flags 🇪🇸",
        "Chinese and Japanese": "the city 東京 (日本語) and 北京ひらがな한국어",
        "Chinese beyond the basic plane": "x\U00020000y\uf900z",
        "Arabic": "مرحبا بالعالم سَلَام",
        "Hebrew": "שלום עולם שָׁלוֹם",
        "Greek and Cyrillic": "Αβγ ΣΊΣΥΦΟΣ жия МОСКВА Й",
        "Turkish and German casing": "İstanbul ISPARTA ıiI STRASSE Straße ẞ",
        "compatibility characters": "ﬁne Å Å ２０１２ Ⅻ ½ x² dž",
        "accents composed": unicodedata.normalize("NFC", accents),
        "accents combining": unicodedata.normalize("NFD", accents),
        "stacked combining accents": "e\u0301\u0303\u0308x \u0301alone",
        "curly quotes": "“Nile’s” ‘river’ – long — very… «so»",
        "straight quotes": "\"the 'river'\" it's",
        "word of 99 characters": "a" * 99,
        "word of 100 characters": "a" * 100,
        "word of 101 characters": "a" * 101,
        "word of 150 letters": "the " + "abcde" * 30 + " river",
        "150 characters with a hyphen": "a" * 75 + "-" + "b" * 74,
        "special tokens in the text": "the [SEP] river [MASK] is [CLS] long [PAD] and [UNK].",
        "special tokens in lower case": "the [sep] river [mask]x[MASK]y[SEP]",
        "nearly special tokens": "[SEP [MASK [[SEP]] SEP] [ SEP ]",
        "continuation mark": "##s ##ing # # river##s",
        "numbers": "3.14159 1,000,000 2012-08-05 12:30 +49(0)30/1234 1e-9 007",
        "punctuation run": "!!!...???---***$$$%%%&&&@@@___```~~~^^^|||\\\\///<<<>>>",
        "URL and e-mail": "https://example.org/a_b?c=d&e=f#g user.name+tag@example.org",
        "source text": "for (int i = 0; i < 10; ++i) { x[i] = '\\n'; }",
        "Spanish question": "¿Qué medallas ganó Usain Bolt en 2012?",
        "Spanish exclamation": "¡Olé, qué AÑO más ágil!",
        "Spanish lower case": "el año pasado la cigüeña comió piñón y jamón aquí",
        "Spanish upper case": "EL AÑO PASADO LA CIGÜEÑA COMIÓ PIÑÓN Y JAMÓN AQUÍ",
        "Spanish pairs": "año ano Él él el El sí si Sí papá papa pingüino pinguino",
    }


def cases(language: str) -> list[tuple[str, str, str, str, int]]:
    """The cases as (name, kind, title, text, max_tokens)."""
    passages = corpus.passages(language)
    first, second = passages[0], passages[1]
    long_text = " ".join(passage.text for passage in passages[2:9])
    long_title = " ".join(passage.text for passage in passages[9:16])
    made = [(name, "question", "", text, 256) for name, text in strings().items()]
    made += [
        (f"question {number}", "question", "", question.question, 256)
        for number, question in enumerate(corpus.questions(language)[:5], 1)
    ]
    made += [
        ("passage 1", "passage", first.title, first.text, 256),
        ("passage 2", "passage", second.title, second.text, 256),
        ("empty title", "passage", "", first.text, 256),
        ("title of spaces", "passage", "  ", first.text, 256),
        ("empty text", "passage", first.title, "", 256),
        ("empty title and text", "passage", "", "", 256),
        ("title equals text", "passage", first.title, first.title, 256),
        ("special tokens in title and text", "passage", "River [SEP] Nile", "the [MASK] river [SEP]", 256),
        ("control characters in title and text", "passage", "Ri\x00ver\u200b", "\ufeffthe\rriver\x07 \ufffd", 256),
        ("accents in title and text", "passage", "CIGÜEÑA", "La cigu\u0308en\u0303a y el AN\u0303O", 256),
        ("scripts in title and text", "passage", "東京", "שלום 😀 سلم", 256),
        ("long question cut at 256", "question", "", long_text, 256),
        ("long text cut at 256", "passage", "", long_text, 256),
        ("long text with a short title cut at 256", "passage", first.title, long_text, 256),
        ("long title with a short text cut at 256", "passage", long_title, first.title, 256),
        ("long title and long text cut at 256", "passage", long_title, long_text, 256),
        ("long title and empty text cut at 64", "passage", long_title, "", 64),
        ("title and text cut at an odd length", "passage", first.text, second.text, 33),
        ("title and text cut at an even length", "passage", first.text, second.text, 34),
        ("longer title cut first", "passage", first.text, second.title, 20),
        ("cut inside a word", "question", "", "Xyzzyq" * 12, 10),
        ("cut to 4 tokens", "passage", first.title, first.text, 4),
    ]
    return made


class Reference:
    """transformers' tokenizers for one vocabulary."""

    def __init__(self, directory: Path) -> None:
        self._question = DPRQuestionEncoderTokenizerFast.from_pretrained(directory)
        self._context = DPRContextEncoderTokenizerFast.from_pretrained(directory)

    def __call__(self, kind: str, title: str, text: str, max_tokens: int | None) -> list[int]:
        """Token ids, cut to `max_tokens` unless None."""
        cut = {"truncation": "longest_first", "max_length": max_tokens} if max_tokens else {}
        # Lists, as passages are encoded in practice: for a lone title with an empty text the call without lists
        # drops the second [SEP], the call with lists keeps it.
        if kind == "question":
            return self._question([text], **cut)["input_ids"][0]
        if title:
            return self._context([title], [text], **cut)["input_ids"][0]
        return self._context([text], **cut)["input_ids"][0]


def exact_lengths(tokenize: Reference, language: str) -> list[tuple[str, str, str, str, int]]:
    """Texts whose length is the limit exactly, and the same with a limit one lower."""
    passage = corpus.passages(language)[3]
    made = []
    for kind, title in (("question", ""), ("passage", ""), ("passage", passage.title)):
        length = len(tokenize(kind, title, passage.text, None))
        label = f"{kind} with a title" if title else kind
        made.append((f"{label} exactly at the limit", kind, title, passage.text, length))
        made.append((f"{label} one over the limit", kind, title, passage.text, length - 1))
    return made


def write_golden(file: Path, golden: dict[str, list[dict[str, object]]]) -> None:
    """Writes golden.json, one case a line."""
    head = {
        "made_by": f"tests/data/golden_tokenizer/{Path(__file__).name}",
        "transformers": importlib.metadata.version("transformers"),
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    blocks = []
    for name, rows in golden.items():
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
        blocks.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    file.write_text("{\n" + ",\n".join(lines + blocks) + "\n}\n", "utf-8", newline="\n")


def main() -> None:
    """Writes everything."""
    golden: dict[str, list[dict[str, object]]] = {}
    for name, (language, lowercase) in VOCABULARIES.items():
        write_checkpoint(HERE / name, train(language, lowercase), lowercase)
        reference = Reference(HERE / name)
        golden[name] = [
            {
                "name": case,
                "kind": kind,
                "title": title,
                "text": text,
                "max_tokens": max_tokens,
                "ids": reference(kind, title, text, max_tokens),
            }
            for case, kind, title, text, max_tokens in cases(language) + exact_lengths(reference, language)
        ]
    write_golden(HERE / "golden.json", golden)


if __name__ == "__main__":
    main()
