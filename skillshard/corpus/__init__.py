"""The corpus: an ordered list of files, cut into partitions and read as samples.

The formats are JSON lines and documents, CSV and TSV, text and source code, WET (each plain, `.gz`, `.zst`, `.bz2` or `.xz`), Parquet,
Arrow and Feather (files and streams, also from Hugging Face's `save_to_disk`), and WebDataset tars. Every row gives exactly one item: a
`Sample`, or a `Rejection` with the fault and its place. Blank lines are not rows. Nothing is ever unpickled.

    corpus = Corpus.open("data/")
    for partition in corpus.partitions():
        for item in read_partition(partition):
            print(item.sentence() if isinstance(item, Rejection) else item.text)
"""

from skillshard.corpus.bad_record import RESTS, Reason
from skillshard.corpus.columns import MetaField, SampleColumns, SampleJsons, SampleLists
from skillshard.corpus.corpus_list import CorpusList, given_places, is_corpus_file
from skillshard.corpus.files import Corpus
from skillshard.corpus.formats import CorpusFile, FileLayout, Format, format_of
from skillshard.corpus.mapping import ANSWER_SPANS, DEFAULT_MAX_SAMPLE_BYTES, CorpusReading, FieldMapping
from skillshard.corpus.partitions import DEFAULT_PACKING, DEFAULT_PARTITION_BYTES, Packing, Partition
from skillshard.corpus.paths import MISSING
from skillshard.corpus.reader import PartitionReader, read_partition, row_places
from skillshard.corpus.sample import PassedOver, Rejection, Sample, category_of, lookup, unit_of
from skillshard.corpus.stretches import Stretch

__all__ = [
    "ANSWER_SPANS",
    "DEFAULT_MAX_SAMPLE_BYTES",
    "DEFAULT_PACKING",
    "DEFAULT_PARTITION_BYTES",
    "MISSING",
    "RESTS",
    "Corpus",
    "CorpusFile",
    "CorpusList",
    "CorpusReading",
    "FieldMapping",
    "FileLayout",
    "Format",
    "MetaField",
    "Packing",
    "Partition",
    "PartitionReader",
    "PassedOver",
    "Reason",
    "Rejection",
    "Sample",
    "SampleColumns",
    "SampleJsons",
    "SampleLists",
    "Stretch",
    "category_of",
    "format_of",
    "given_places",
    "is_corpus_file",
    "lookup",
    "read_partition",
    "row_places",
    "unit_of",
]
