"""Terms that distinguish clusters: words of any script, weighted by class-based TF-IDF."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy  # its parts are imported at their first use: the driver does without them

from mode_ray.atlas.summary import MAX_TERM_CHARACTERS

MAX_TERMS_PER_CAPTION = 48
_WORTH_COUNTING_SHARE = 0.02
_COMMON_CLUSTER_SHARE = 0.25
_STRIKING_LIFT = 3.0
_FEW_CLUSTERS = 8
# Scripts without spaces: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LAST_MARK = 0x1F000


def terms_of(caption: str) -> list[str]:
    """The first `MAX_TERMS_PER_CAPTION` distinct terms of a caption: lowercase words, or character bigrams.

    A word is a run of letters, digits and their combining marks. Numbers below 100 and single letters are excluded.
    Character bigrams are used for scripts without spaces.
    """
    terms: dict[str, None] = {}
    for match in _pattern().finditer(unicodedata.normalize("NFKC", caption).lower()):
        run = match.group()
        if match.lastgroup == "unspaced":
            found = [run[start : start + 2] for start in range(max(1, len(run) - 1))]
        elif len(run) < 2 or (run.isdecimal() and len(run) < 3) or len(run) > MAX_TERM_CHARACTERS:
            continue
        else:
            found = [run]
        terms.update(dict.fromkeys(found))
        if len(terms) >= MAX_TERMS_PER_CAPTION:
            return list(terms)[:MAX_TERMS_PER_CAPTION]
    return list(terms)


@functools.cache
def _pattern() -> re.Pattern[str]:
    # `\w` excludes combining marks, which would split the words of many Indic scripts.
    marks = "".join(chr(code) for code in range(0x300, _LAST_MARK) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"(?:(?![{_UNSPACED}])[^\W_])"
    return re.compile(
        rf"(?P<unspaced>[{_UNSPACED}]+)|(?P<spaced>{letter}(?:{letter}|[{marks}]|['\u2019](?={letter}))*)"
    )


def count_terms(captions: Sequence[str], fine_b: npt.NDArray[np.integer]) -> pa.Table:
    """The number of captions of each cluster that contain a term; repeats within a caption are ignored.

    Returns:
        Columns term string, fine int32, captions int64; one row per pair of term and cluster.
    """
    counts: Counter[tuple[str, int]] = Counter()
    for caption, fine in zip(captions, fine_b.tolist(), strict=True):
        counts.update((term, fine) for term in terms_of(caption))
    return pa.table(
        {
            "term": pa.array([term for term, _ in counts], pa.string()),
            "fine": pa.array([fine for _, fine in counts], pa.int32()),
            "captions": pa.array(counts.values(), pa.int64()),
        }
    )


class TermCounts:
    """Term counts of all fine clusters, to rank terms by cluster or by expert.

    Args:
        counts: One or several concatenated tables of `count_terms`.
        captions_m: Number of counted captions of each cluster, [m].
    """

    def __init__(self, counts: pa.Table, captions_m: npt.NDArray[np.integer]) -> None:
        terms = counts["term"].combine_chunks().dictionary_encode()
        self._names: list[str] = terms.dictionary.to_pylist()
        self._captions_m = captions_m
        shape = (len(captions_m), len(self._names))
        cells = (counts["captions"].to_numpy(), (counts["fine"].to_numpy(), terms.indices.to_numpy()))
        self._counts_mt = scipy.sparse.coo_array(cells, shape=shape, dtype=np.float64).tocsr()
        self._common_t = _common_terms(self._counts_mt, captions_m)

    @property
    def common(self) -> list[str]:
        """The stop words, most widespread first."""
        spread_t = np.diff(self._counts_mt.tocsc().indptr)
        return [self._names[t] for t in sorted(np.flatnonzero(self._common_t), key=lambda t: (-spread_t[t], t))]

    def top(self, group_m: npt.NDArray[np.integer], groups: int, count: int) -> list[list[str]]:
        """The `count` terms with the highest class-based TF-IDF of every group of clusters, best first.

        The weight of term t in class c is tf(t, c) log(1 + A / f(t)), where tf is the number of captions of c with t,
        f that of all classes, and A the average number of words per class (Grootendorst 2022, BERTopic, section 3.3).
        A stop word is included only in a class whose captions contain it `_STRIKING_LIFT` times as often as all
        captions. Terms of a single caption are used only if there are not enough others.

        Args:
            group_m: Group of every fine cluster; `np.arange(m)` for the clusters themselves.
            groups: Number of groups.
            count: Most terms per group.
        """
        members = scipy.sparse.coo_array(
            (np.ones(len(group_m)), (group_m, np.arange(len(group_m)))), shape=(groups, len(group_m))
        ).tocsr()
        counts_gt = (members @ self._counts_mt).tocsr()
        total_t = np.asarray(counts_gt.sum(axis=0)).ravel()
        words_a_class = total_t.sum() / max(1, groups)
        rarity_t = np.log1p(words_a_class / np.maximum(total_t, 1))
        captions_g = np.bincount(group_m, weights=self._captions_m, minlength=groups)
        usual_t = _STRIKING_LIFT * total_t / max(1, int(self._captions_m.sum()))
        ranked = []
        for group in range(groups):
            row = slice(counts_gt.indptr[group], counts_gt.indptr[group + 1])
            term_k, count_k = counts_gt.indices[row], counts_gt.data[row]
            dull_k = self._common_t[term_k] & (count_k < usual_t[term_k] * captions_g[group])
            score_k = np.where(dull_k, 0.0, count_k * rarity_t[term_k])
            order = np.lexsort((term_k, -score_k, count_k < 2))
            ranked.append([self._names[term_k[k]] for k in order[:count] if score_k[k] > 0])
        return ranked


def _common_terms(counts_mt: "scipy.sparse.csr_array", captions_m: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Mask of the stop words of any language: terms in a notable share of the captions of many clusters.

    With few clusters, stop words cannot be distinguished from topics; the mask is then empty.
    """
    clusters, terms = counts_mt.shape
    if clusters < _FEW_CLUSTERS:
        return np.zeros(terms, np.bool_)
    needed_m = np.maximum(1, _WORTH_COUNTING_SHARE * captions_m)
    cells = counts_mt.tocoo()
    widespread = cells.data >= needed_m[cells.row]
    clusters_t = np.bincount(cells.col[widespread], minlength=terms)
    common: npt.NDArray[np.bool_] = clusters_t > _COMMON_CLUSTER_SHARE * max(1, int((captions_m > 0).sum()))
    return common
