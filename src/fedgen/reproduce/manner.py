"""Plain English brought to the manner of the Penn Treebank, so that a model can learn that manner from other text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

END, RARE, NUMBER = "<eos>", "<unk>", "N"
LEAST, PROSE = 4, 0.85  # words of a line, and the share of its characters that are letters or spaces, to be prose
MARKS = re.compile(r"^[\s#*>.\"'`-]+")  # what stands before prose in a source file
SHORT = r"(?:mr|mrs|ms|dr|jr|sr|corp|inc|ltd|jan|feb|aug|sept|oct|nov|dec)\.|(?:[a-z]\.){2,}"  # their dot is theirs
WORD = re.compile(rf"{SHORT}|n't\b|'(?:s|re|ve|ll|d|m)\b|[$#&%]|[a-z0-9]+(?:[-./,:&][a-z0-9]+)*")
BREAK = re.compile(r"(?<=[.!?;:])(?<![A-Z]\.)(?<!Mr\.)(?<!Dr\.)(?<!rs\.)[\"')]*\s+")


def treebank(text: str) -> Iterator[list[str]]:
    """A text's sentences as the Treebank's words: lower case, numbers as N, no punctuation but in words."""
    for passage in passages(text):
        for sentence in BREAK.split(passage):
            words = [_word(found) for found in WORD.findall(_apart(sentence.lower()))]
            if len(words) >= LEAST:
                yield words


def passages(text: str) -> Iterator[str]:
    """Runs of lines that are prose, joined; code and tables are passed over."""
    run: list[str] = []
    for line in [*text.splitlines(), ""]:
        bare = MARKS.sub("", line).strip()
        if _is_prose(bare) or (run and bare and bare[-1] in ".?!"):  # a paragraph may end in a short line
            run.append(bare)
        elif run:
            yield " ".join(run)
            run = []


def _is_prose(line: str) -> bool:
    plain = sum(char.isalpha() or char == " " for char in line)
    return line.count(" ") + 1 >= LEAST and plain >= PROSE * len(line)


def _apart(text: str) -> str:
    """Contractions as two words, as the Treebank has them."""
    return text.replace("’", "'").replace("n't", " n't").replace("cannot", "can not")


def _word(word: str) -> str:
    is_number = word == "%" or (word[0].isdigit() and not any(char.isalpha() for char in word))
    return NUMBER if is_number else word


def with_rare(sentences: Iterable[list[str]], known: set[str]) -> Iterator[list[str]]:
    """Sentences in which every word that is not known is the Treebank's mark for a rare one."""
    for words in sentences:
        yield [word if word in known else RARE for word in words]


def commonest(sentences: Iterable[list[str]], most: int) -> set[str]:
    """The commonest words of sentences; between equals the first by name, so that the choice is the same everywhere."""
    counts = Counter(word for words in sentences for word in words)
    return set(sorted(counts, key=lambda word: (-counts[word], word))[:most])


def joined(sentences: Iterable[list[str]]) -> str:
    """Sentences as one line of words, each ended by the word `<eos>`."""
    return " ".join(" ".join([*words, END]) for words in sentences)
