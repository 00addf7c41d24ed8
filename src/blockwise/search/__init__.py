"""Searches: which scopes of a sweep train, and which cells stop before their end.

A search is any object with the two methods of `Search`. One of your own can inherit from `Exhaustive`, which trains
everything:

>>> from blockwise.search import Exhaustive
>>> class LastTwo(Exhaustive):
...     def rounds(self, scopes, trials):
...         yield [scope for scope in scopes if not scope.isdigit()][:1]
...         yield sorted((scope for scope in scopes if scope.isdigit()), key=int)[-2:]
>>> list(LastTwo().rounds(["head", "0", "1", "2", "full"], trials=None))
[['head'], ['1', '2']]
"""

from blockwise.search.first_epoch import FirstEpoch
from blockwise.search.greedy import Greedy
from blockwise.search.halving import Halving
from blockwise.search.racing import Racing
from blockwise.search.ranked import Ranked
from blockwise.search.strategy import Candidate, Exhaustive, Search, Trials, stops_cells
from blockwise.search.topdown import TopDown

# the names of our searches, as those of their files in conf/search
SEARCH_NAMES: dict[type, str] = {
    Exhaustive: "exhaustive",
    Racing: "racing",
    Halving: "halving",
    FirstEpoch: "first_epoch",
    TopDown: "topdown",
    Ranked: "ranked",
    Greedy: "greedy",
}

__all__ = [
    "SEARCH_NAMES",
    "Candidate",
    "Exhaustive",
    "FirstEpoch",
    "Greedy",
    "Halving",
    "Racing",
    "Ranked",
    "Search",
    "TopDown",
    "Trials",
    "stops_cells",
]
