"""The lexical encoder finds topics in any script, and is not led by habits of writing."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.report.clusters import compare
from skillshard.taggers.clusters.lexical import terms_of
from skillshard.taggers.clusters.words import words_in
from tests.conftest import HERE, write_corpus
from tests.topics import PLAIN, WORDS

CHINESE = {
    "coffee": "咖啡 烘焙 研磨 豆子 浓缩 奶泡 滤纸 香气 苦味 拿铁",
    "law": "法院 法官 判决 原告 上诉 律师 证词 条款 仲裁 被告",
    "space": "火箭 轨道 卫星 月球 望远镜 银河 宇航员 彗星 星云 发射",
}
CHINESE_PLAIN = ["我们", "今天", "可以", "因为", "这个", "非常", "已经", "但是", "还有", "他们", "什么", "时候"]
HINDI = {
    "coffee": "कॉफ़ी भुना पीसना दाना झाग छन्नी सुगंध कड़वा प्याला दूध",
    "law": "न्यायालय न्यायाधीश निर्णय वादी अपील वकील गवाही धारा मध्यस्थ प्रतिवादी",
    "space": "रॉकेट कक्षा उपग्रह चंद्रमा दूरबीन आकाशगंगा यात्री धूमकेतु निहारिका प्रक्षेपण",
}
HINDI_PLAIN = ["और", "है", "में", "की", "के", "यह", "था", "पर", "से", "को", "भी", "तो"]


def twin(folder: Path, topics: dict[str, str], plain: list[str], joint: str) -> Path:
    """Write a corpus of three topics of unlike size, in which half of the words have no topic."""
    chance = random.Random(0)
    records = []
    for number in range(240):
        topic = chance.choices(list(topics), (3, 2, 1))[0]
        words = chance.choices(topics[topic].split(), k=8) + chance.choices(plain, k=8)
        chance.shuffle(words)
        records.append({"id": f"{number:03d}", "text": joint.join(words), "meta": {"topic": topic}})
    return write_corpus(folder / "C", records)


@pytest.mark.parametrize(
    ("topics", "plain", "joint"), [(CHINESE, CHINESE_PLAIN, ""), (HINDI, HINDI_PLAIN, " ")], ids=["Chinese", "Hindi"]
)
def test_topics_are_found_in_scripts_without_spaces_and_with_marks(
    tmp_path: Path, topics: dict[str, str], plain: list[str], joint: str
) -> None:
    corpus = Corpus.open(twin(tmp_path, topics, plain, joint))
    tags = taggers.tag_corpus(corpus, taggers.embedding(taggers.lexical(), skills=3), tmp_path / "E", backend=HERE)
    measured = compare(tags, "topic")
    assert measured.nmi > 0.95
    for skill, counts in zip(measured.found, measured.counts, strict=True):
        words = topics[measured.true[int(counts.argmax())]]
        assert any(term in words for term in skill.split("-"))
        assert all(len(term) <= 12 for term in skill.split("-"))  # no term is a whole sentence


def test_clusters_follow_the_topic_and_not_the_habits_of_writing(tmp_path: Path) -> None:
    """Half of the texts of each topic have quote marks, rulers and headers, as mails and forum posts do."""
    chance = random.Random(0)
    records = []
    for number in range(240):
        topic = list(WORDS)[number % 3]
        words = chance.choices(WORDS[topic].split(), k=6) + chance.choices(PLAIN, k=18)
        chance.shuffle(words)
        text = " ".join(words)
        if number % 2:
            text = f'> > {" > ".join(text.split())}\n----------\n***\n>> "..." :-)'
        records.append({"id": f"{number:03d}", "text": text, "meta": {"topic": topic}})
    corpus = Corpus.open(write_corpus(tmp_path / "C", records))
    tags = taggers.tag_corpus(corpus, taggers.embedding(taggers.lexical(), skills=3), tmp_path / "E", backend=HERE)
    assert compare(tags, "topic").nmi > 0.95


@given(text=st.text())
def test_words_are_parts_of_the_text_without_spaces_and_marks_alone(text: str) -> None:
    for word in words_in(text):
        assert word and not word.isspace() and "_" not in word
    assert words_in(text) == words_in(f" {text} ")
    assert len(terms_of(text)) <= len(words_in(text))


def test_composed_and_decomposed_letters_give_the_same_words() -> None:
    assert words_in("Cafe\u0301 na\u00efve") == words_in("CAF\u00c9 nai\u0308ve") == ["café", "naïve"]
