"""What happens to a text before it is tokenized: the rules of the lineages of DPR, each under a name.

The rules decide embeddings, so a tower keeps the preset it was exported with (it is part of its tower_id), and the
exporter, the index and the server apply it alike.

    hf         texts as they are; a passage without title is the text alone (transformers' DPR classes)
    dpr-2020   one "?" is cut from the end of a question (dpr/data/biencoder_data.py of the first release)
    dpr-head   U+2019 becomes an apostrophe in questions and texts, and one quotation mark at each end of a text is
               cut (normalize_question and normalize_passage, same file, 2021: the one for all questions, the other
               for passages of data sets with `normalize`, which is off by default)
    haystack   one "?" is cut from the end of a question; a passage without title keeps the separator of its empty
               title: [CLS] [SEP] text [SEP] (the DPR training of Haystack 1)
"""

from dataclasses import dataclass

from narrows.bundle import TextPreset

RIGHT_QUOTATION_MARK = "\u2019"


@dataclass(frozen=True, slots=True)
class TextRules:
    """One preset's rules."""

    cuts_question_mark: bool = False
    straightens_apostrophes: bool = False
    cuts_quotation_marks: bool = False
    keeps_empty_title: bool = False

    def question(self, text: str) -> str:
        """A question as it is tokenized."""
        text = text.removesuffix("?") if self.cuts_question_mark else text
        return self._straight(text)

    def text(self, text: str) -> str:
        """A passage's text as it is tokenized. Titles are left as they are in every preset."""
        text = text.removeprefix('"').removesuffix('"') if self.cuts_quotation_marks else text
        return self._straight(text)

    def cut_before(self, text: str) -> int:
        """How many characters `text` takes from the beginning of a passage's text; it adds none anywhere."""
        return int(self.cuts_quotation_marks and text.startswith('"'))

    def _straight(self, text: str) -> str:
        return text.replace(RIGHT_QUOTATION_MARK, "'") if self.straightens_apostrophes else text


RULES: dict[TextPreset, TextRules] = {
    "hf": TextRules(),
    "dpr-2020": TextRules(cuts_question_mark=True),
    "dpr-head": TextRules(straightens_apostrophes=True, cuts_quotation_marks=True),
    "haystack": TextRules(cuts_question_mark=True, keeps_empty_title=True),
}
