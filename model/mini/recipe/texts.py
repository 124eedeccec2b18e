"""What the synthetic speakers say: pieces of English text from templates, WordNet's examples, fortunes and word lists.

A piece is spoken (with punctuation, for the voice's melody) and written (what the transcript holds: lower-case words,
apostrophes inside words, numbers as words). No piece contains a sentence of the evaluation sets.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from .numbers import FILLERS, spell

GRAMMAR: Final = Path(__file__).with_name("grammar.txt")
WORDNET: Final = Path("/usr/share/wordnet")
FORTUNES: Final = Path("/usr/share/games/fortunes")
SOURCES: Final = {"grammar": 46, "wordnet": 26, "definitions": 5, "fortunes": 13, "words": 10}  # shares, in percent
MAX_WORDS: Final = 22
COMMON_WORDS: Final = 3000  # half of a word list is drawn from the most frequent words of the other texts

_SLOT: Final = re.compile(r"\{(\w+)\}")
_EXPANSIONS: Final = (
    (r"\bmrs\.", "missus"),
    (r"\bmr\.", "mister"),
    (r"\bdr\.", "doctor"),
    (r"\bst\.", "saint"),
    (r"\betc\.", "et cetera"),
    (r"\be\.g\.", "for example"),
    (r"\bi\.e\.", "that is"),
    (r"&", " and "),
    (r"%", " percent"),
)


@dataclass(frozen=True)
class Piece:
    """One utterance: what a voice is given, what the transcript holds, where it came from."""

    spoken: str
    written: str
    source: str


def normalise(text: str) -> str:
    """Lower-case words with nothing but apostrophes inside: the style of every transcript."""
    text = text.lower().replace("’", "'").replace("`", "'")
    text = re.sub(r"[^a-z' ]+", " ", text)
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)
    return " ".join(text.split())


def plain(sentence: str, source: str) -> Piece | None:
    """A printed sentence as a piece; None where spoken words could differ from it (digits, acronyms, odd signs)."""
    sentence = " ".join(sentence.replace("’", "'").replace("`", "'").split())
    if re.search(r"\d|[A-Z]{2}|[^\x20-\x7e]|[/\\<>=*_+@#$|~^\[\]{}]|\w\.\w", sentence):
        return None
    spoken = sentence.lower()
    for pattern, words in _EXPANSIONS:
        spoken = re.sub(pattern, words, spoken)
    if re.search(r"\b[b-hj-z]\.|\b[b-hj-z]\b(?!')(?<!'[a-z])", spoken):  # initials and abbreviations
        return None
    spoken = re.sub(r"[()\"]", " ", spoken.replace("--", ", "))
    written = normalise(spoken)
    if not 1 <= len(written.split()) <= MAX_WORDS or len(written) < 2:
        return None
    return Piece(re.sub(r"\bi\b", "I", " ".join(spoken.split())), written, source)


class Grammar:
    """The templates of `grammar.txt`."""

    def __init__(self, path: Path = GRAMMAR) -> None:
        """Read the lists and the weights of the roots."""
        self.lists: dict[str, list[str]] = {}
        self.roots: dict[str, int] = {}
        current: list[str] = []
        for line in path.read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            if line.startswith("["):
                name, _, weight = line[1:].partition("]")
                current = self.lists.setdefault(name, [])
                if weight.strip():
                    self.roots[name] = int(weight)
            else:
                current.append(line)

    def piece(self, r: random.Random) -> Piece:
        """One random utterance."""
        root = r.choices(list(self.roots), list(self.roots.values()))[0]
        spoken, written = self._expand("{" + root + "}", r)
        return Piece(re.sub(r"\bi\b", "I", spoken), normalise(written), "grammar")

    def _expand(self, template: str, r: random.Random) -> tuple[str, str]:
        spoken: list[str] = []
        written: list[str] = []
        end = 0
        for slot in _SLOT.finditer(template):
            filled = self._fill(slot[1], r)
            for out, value in zip((spoken, written), filled, strict=True):
                out += [template[end : slot.start()], value]
            end = slot.end()
        return "".join(spoken) + template[end:], "".join(written) + template[end:]

    def _fill(self, name: str, r: random.Random) -> tuple[str, str]:
        if name in FILLERS:
            return FILLERS[name](r)
        if name in ("SPELLED", "SPELLNAME"):
            kind = (
                r.choice(("NAME", "LASTNAME"))
                if name == "SPELLNAME"
                else r.choice(("NAME", "PLACE", "thing", "animal"))
            )
            return spell(r.choice(self.lists[kind]).replace(" ", ""))
        return self._expand(r.choice(self.lists[name]), r)


def wordnet_lines() -> Iterator[str]:
    """The gloss of every synset: definition, then examples in quotation marks."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text("latin-1").splitlines():
            if not line.startswith(" ") and " | " in line:
                yield line.partition(" | ")[2].strip()


def wordnet_examples() -> Iterator[Piece | None]:
    """Example sentences and phrases."""
    for gloss in wordnet_lines():
        for example in re.findall(r'"([^"]+)"', gloss):
            yield plain(example, "wordnet")


def wordnet_definitions() -> Iterator[Piece | None]:
    """Definitions of a moderate length: they hold words that no example has."""
    for gloss in wordnet_lines():
        definition = re.split(r'[;:("]', gloss)[0].strip()
        if 4 <= len(definition.split()) <= 12:
            yield plain(definition, "definitions")


def fortunes() -> Iterator[Piece | None]:
    """The sentences of Debian's fortune files; anything marked up, quoted or attributed falls out in `plain`."""
    for file in sorted(FORTUNES.iterdir()):
        if file.suffix or file.is_symlink() or file.name in ("ascii-art", "translate-me", "perl", "debian"):
            continue
        for entry in file.read_text("utf-8", "replace").split("\n%\n"):
            body = re.split(r"\n\s*--", entry)[0]
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(body.split())):
                if len(sentence.split()) >= 3:
                    yield plain(sentence, "fortunes")


def word_lists(counts: Counter[str], r: random.Random) -> Iterator[Piece]:
    """Short lists of words in no order: acoustics without a language model's help, and a wide vocabulary."""
    words = [w for w, _ in counts.most_common() if len(w) > 2 and "'" not in w]
    common, all_words = words[:COMMON_WORDS], words
    while True:
        chosen = [
            r.choice(common if r.random() < 0.5 else all_words) for _ in range(r.choice((1, 1, 2, 3, 4, 5, 6, 8)))
        ]
        yield Piece(r.choice((", ", ", ", " ")).join(chosen), " ".join(chosen), "words")


def evaluation_filter(sentences: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any evaluation sentence of three words or more inside a written piece."""
    wanted = {normalise(s) for s in sentences}
    long = sorted(w for w in wanted if len(w.split()) >= 3)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, long)) + r")\b") if long else None


def _cycle(pieces: list[Piece], r: random.Random) -> Iterator[Piece]:
    while True:
        r.shuffle(pieces)
        yield from pieces


def make_texts(count: int, seed: int, forbidden: Iterable[str], shares: Mapping[str, int] = SOURCES) -> list[Piece]:
    """`count` different pieces in random order, none of which holds a forbidden sentence."""
    r = random.Random(seed)
    grammar = Grammar()
    readers = {"wordnet": wordnet_examples, "definitions": wordnet_definitions, "fortunes": fortunes}
    found = {name: [p for p in read() if p] for name, read in readers.items() if name in shares}
    counts: Counter[str] = Counter(w for ps in found.values() for p in ps for w in p.written.split())
    sources: dict[str, Iterator[Piece]] = {name: _cycle(ps, r) for name, ps in found.items()}
    sources["grammar"] = iter(lambda: grammar.piece(r), None)
    if "words" in shares:
        sources["words"] = word_lists(counts, r)
    stop = evaluation_filter(forbidden)
    seen: Counter[str] = Counter()
    pieces: list[Piece] = []
    while len(pieces) < count:
        piece = next(sources[r.choices(list(shares), list(shares.values()))[0]])
        # The short and frequent (digits, yes and no, single letters) may come back a few times, sentences may not.
        limit = 40 if len(piece.written) <= 12 else 4 if len(piece.written) <= 24 else 1
        if not piece.written or seen[piece.written] >= limit or (stop and stop.search(piece.written)):
            continue
        seen[piece.written] += 1
        pieces.append(piece)
    return pieces


def save_texts(pieces: list[Piece], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(p)) + "\n" for p in pieces))


def load_texts(path: Path) -> list[Piece]:
    """The pieces that `save_texts` wrote."""
    return [Piece(**json.loads(line)) for line in path.read_text().splitlines()]
