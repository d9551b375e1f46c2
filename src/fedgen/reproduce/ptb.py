"""Penn Treebank: a backbone that has never read it, and clients that hold its articles by topic or as they lie.

The published text has lost its articles' bounds, so `LINES` sentences that stand together are one. Topics are found by
TF-IDF and NMF over all of them. A client holds articles of about `WORDS` words. In a world `topics-ALPHA` each draws
its own mix of topics from Dirichlet(ALPHA); in `articles` they are neighbours. One article in four is set apart for
clients by whom learning rates are chosen: no client of a table holds any of those. A line's end is the word `<eos>`,
so that it is counted as one, as is usual for perplexities of this text.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgen.data import files
from fedgen.data.sources import PennTreebank
from fedgen.data.stdlib import public
from fedgen.errors import DataError
from fedgen.reproduce.manner import END, RARE, commonest, joined, treebank, with_rare
from fedgen.reproduce.pretraining import RECORD, Shape, pretrain
from fedgen.store import write_whole

SHAPE = Shape(vocabulary=2048, hidden=128, inner=320, layers=3, heads=4, reach=128, context=128, batch=16)
KNOWN = 10_000  # words of the Treebank's vocabulary, and so of the text that stands in for it
PIECE = 20_000  # characters of a long text that are one document
LINES, TOPICS, CLIENTS, WORDS = 8, 12, 100, 1720
SEEDS, TRIAL, FEWER = range(4), 4, 30  # one article in so many is the trials', who are fewer clients
ALPHAS = (0.1, 0.5)
FEATURES = 4096  # the commonest words that topics are told apart by
MANNER = (
    "public modules of Python's standard library and its documentation topics, a subset of databricks-dolly-15k, and "
    "Tiny Shakespeare: sentences of prose, lower case, numbers as N, no punctuation outside words, contractions apart, "
    f"words beyond the {KNOWN} commonest as <unk>, <eos> after each sentence"
)


def prepare(data: Path, work: Path, minutes: float) -> dict[str, Any]:
    """Make the backbone and the clients' files below `work`, those that are not there; the record of the backbone."""
    for path in ("ptb", "dolly", "tinyshakespeare"):
        files.folder(str(data / path), "text")
    record = backbone(data, work / "backbone", minutes)
    if not (work / "clients" / "whole").exists():
        _write_clients(data, work / "clients")
    return record


# ---- the backbone


def backbone(data: Path, folder: Path, minutes: float) -> dict[str, Any]:
    """The pre-trained backbone in its folder, made if it is not there; the record of its making."""
    if not (folder / RECORD).exists():
        sentences = [list(treebank(text)) for text in elsewhere(data)]
        known = commonest((words for own in sentences for words in own), KNOWN)
        texts = [joined(with_rare(own, known)) for own in sentences if own]
        pretrain(folder, texts, SHAPE, minutes=minutes, words=(RARE, END), said={"data": MANNER})
    record: dict[str, Any] = json.loads(files.text(folder / RECORD))
    return record


def elsewhere(data: Path) -> Iterator[str]:
    """English that is not the Treebank's: what every Python has, and two folders of the data."""
    yield from (text for _, text in public())
    for where, record in files.records(data / "dolly" / "dolly_subset.jsonl"):
        yield "\n\n".join(files.value(record, field, where) for field in ("instruction", "context", "response"))
    plays = files.text(data / "tinyshakespeare" / "input.txt")
    yield from (plays[at : at + PIECE] for at in range(0, len(plays), PIECE))


# ---- the clients


@dataclass(frozen=True)
class Article:
    """Sentences that stand together, and what they are about."""

    text: str
    topic: int

    @property
    def words(self) -> int:
        """How many, a sentence's end counted as one."""
        return self.text.count(" ") + 1


Holding = dict[str, list[Article]]


def _write_clients(data: Path, folder: Path) -> None:
    texts = [document.text for document in PennTreebank(str(data / "ptb"), block=LINES).read()]
    articles = [Article(text, topic) for text, topic in zip(texts, topics(texts), strict=True)]
    tables = [article for number, article in enumerate(articles) if number % TRIAL]
    trials = articles[::TRIAL]
    named, fewer = _names(CLIENTS), _names(FEWER)
    for pool, names, seeds in ((tables, named, [str(seed) for seed in SEEDS]), (trials, fewer, ["trial"])):
        for number, seed in enumerate(seeds):
            for alpha in ALPHAS:
                held = by_topics(pool, names, alpha, np.random.default_rng(number))
                _write(folder / f"topics-{alpha}-{seed}.jsonl", held)
            _write(folder / f"articles-{seed}.jsonl", by_place(pool, names, np.random.default_rng(number)))
    write_whole(folder / "whole", b"")


def topics(texts: Sequence[str]) -> list[int]:
    """The strongest topic of each text. One thread: several would add in the order in which they finish."""
    from sklearn.decomposition import NMF  # a second to import, and only this needs it
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    plain = [" ".join(word for word in text.split() if word not in (END, RARE)) for text in texts]
    words = TfidfVectorizer(max_features=FEATURES, sublinear_tf=True, stop_words="english", max_df=0.2)
    with threadpool_limits(1):
        found = NMF(TOPICS, init="nndsvd", max_iter=400, tol=1e-3).fit_transform(words.fit_transform(plain))
    return [int(topic) for topic in found.argmax(1)]


def by_topics(articles: Sequence[Article], names: Sequence[str], alpha: float, draw: np.random.Generator) -> Holding:
    """Clients of one size, each with a mix of topics of its own; an article is held once."""
    left: dict[int, list[Article]] = {}
    for at in draw.permutation(len(articles)):
        left.setdefault(articles[at].topic, []).append(articles[at])
    held: Holding = {}
    for name in names:
        mix, own = draw.dirichlet([alpha] * TOPICS), held.setdefault(name, [])
        while sum(article.words for article in own) < WORDS:
            share = np.array([mix[topic] if left.get(topic) else 0.0 for topic in range(TOPICS)])
            if share.sum() < 1e-9:  # its topics have run out: any that is left
                share = np.array([float(len(left.get(topic, []))) for topic in range(TOPICS)])
            if not share.any():
                raise DataError(
                    f"ptb: wanted {WORDS} words for each of {len(names)} clients, came {len(articles)} articles"
                )
            own.append(left[int(draw.choice(TOPICS, p=share / share.sum()))].pop())
    return held


def by_place(articles: Sequence[Article], names: Sequence[str], draw: np.random.Generator) -> Holding:
    """Clients of one size, each with neighbouring articles from a stretch of its own."""
    stretch, held = len(articles) // len(names), {}
    for number, name in enumerate(names):
        own = articles[number * stretch : (number + 1) * stretch]
        first = int(draw.integers(max(1, stretch - WORDS // 150)))  # an article has about 170 words
        held[name] = list(_enough(own[first:]))
    return held


def _enough(articles: Sequence[Article]) -> Iterator[Article]:
    words = 0
    for article in articles:
        if words < WORDS:
            yield article
        words += article.words


def _names(clients: int) -> list[str]:
    return [f"client-{number:03d}" for number in range(1, clients + 1)]


def _write(path: Path, held: Holding) -> None:
    records = [
        {"client": name, "topic": article.topic, "text": article.text} for name, own in held.items() for article in own
    ]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records).encode())
