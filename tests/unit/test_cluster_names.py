"""Names of clusters are readable, telling and unique."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from skillshard.taggers.clusters.names import count_terms, name_clusters, terms_in

TEXTS = [
    ["Grind the espresso beans after the roast.", "A darker roast wants a coarser grind for espresso."],
    ["The court ruled on the appeal.", "An appeal to a higher court; the judge agreed."],
]


def test_terms_that_tell_clusters_apart_name_them() -> None:
    names = [named.name for named in name_clusters([count_terms(texts) for texts in TEXTS], [2, 2])]
    assert set(names[0].split("-")) <= terms_in(" ".join(TEXTS[0])) and "espresso" in names[0]
    assert {"court", "appeal"} <= set(names[1].split("-"))


def test_clusters_of_the_same_words_still_get_different_names() -> None:
    counts = [Counter({"cat": 5, "dog": 5})] * 3 + [Counter()] * 2
    names = [named.name for named in name_clusters(counts, [5] * 5)]
    assert len(set(names)) == 5
    assert names[3:] == ["no-topic", "no-topic-5"]


def test_a_cluster_whose_terms_are_rare_in_it_is_called_without_topic() -> None:
    counts = [Counter({"court": 80, "judge": 60}), Counter({"lamp": 9, "river": 8, "spoon": 7})]
    with_topic, without = name_clusters(counts, [100, 100])
    assert with_topic.has_topic and with_topic.name == "court-judge"
    assert not without.has_topic and without.name == "no-topic"


def test_a_term_of_few_samples_is_shown_but_names_no_cluster() -> None:
    """The score of "hill" is above that of "payment", which other clusters have too. A name of "hill" would tell of one sample in 25."""
    counts = [
        Counter({"work": 90, "tried": 40, "hill": 4, "payment": 30}),
        Counter({"refund": 90, "payment": 90}),
        Counter({"fee": 90, "payment": 90}),
        Counter({"rate": 90, "payment": 90}),
    ]
    named = name_clusters(counts, [100] * 4)[0]
    assert [term for term, _ in named.terms] == ["work", "tried", "hill", "payment"]
    assert named.name == "work-tried-payment"


def test_a_name_that_is_taken_gets_further_terms_also_of_few_samples() -> None:
    counts = [Counter({"card": 90, "left": 4}), Counter({"card": 90, "right": 4}), Counter({"fee": 90})]
    assert [named.name for named in name_clusters(counts, [100] * 3)] == ["card", "card-right", "fee"]


def test_each_term_has_the_share_of_the_samples_that_hold_the_term() -> None:
    (named, _) = name_clusters([count_terms(texts) for texts in TEXTS], [2, 2])
    shares = dict(named.terms)
    assert shares["espresso"] == 1.0 and shares["beans"] == 0.5


def test_words_in_any_script_can_name_a_cluster() -> None:
    assert terms_in("Маленький принц 42") == {"маленький", "принц"}
    assert terms_in("हिन्दी में पाठ") == {"हिन्दी", "में", "पाठ"}  # vowel signs are marks, and stay in their words
    assert terms_in("我喜欢咖啡。") == {"我喜", "喜欢", "欢咖", "咖啡"}


counted = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), st.integers(1, 9), max_size=8)


@given(counts=st.lists(counted, min_size=1, max_size=6))
def test_names_are_unique_and_never_empty(counts: list[dict[str, int]]) -> None:
    names = [named.name for named in name_clusters(counts, [9] * len(counts))]
    assert len(set(names)) == len(names) == len(counts) and all(names)
