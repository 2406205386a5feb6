"""Prepare medical questions and answers for training; with "library" first, make a library of your own to answer from.

    python data_prep.py --source medalpaca/medical_meadow_medical_flashcards --output data/flashcards
    python data_prep.py --source wikidoc_patient.jsonl --output data/wikidoc

Reads a Hub dataset or a local .json/.jsonl/.csv/.parquet file with a question and an answer column.
Writes OUTPUT/train.jsonl, OUTPUT/validation.jsonl (chat records) and OUTPUT/manifest.json (what each step
removed and why, the source's revision, SHA-256 of the outputs). The same input and seed give the same bytes.

    python data_prep.py library --source my_pages --output my_library    # see: python data_prep.py library --help
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from medical_assistant.data.cleaning import StepLog, load_rules, rejection, repair_text
from medical_assistant.data.deduplication import Pair, cluster_pairs, near_duplicates, split_clusters
from medical_assistant.data.records import Record, Source, make_record, question_answer, read_source, write_records
from medical_assistant.errors import UserError, run_script
from medical_assistant.files import file_sha256, new_folder, write_json
from medical_assistant.settings import parse_settings, required, setting

Item = TypeVar("Item")


LIBRARY_HELP = """Make a library of your own, for `python app.py --library shipped,OUTPUT`.

    python data_prep.py library --source my_pages --output my_library           # a folder of files
    python data_prep.py library --source guideline.pdf --output my_library      # one file
    python data_prep.py library --source addresses.txt --output my_library      # http(s) addresses, one a line
    python data_prep.py library --source user/my-pages --output my_library      # a data set on the Hub

Reads Markdown (this project's form, or plain with front matter: title, address, date, licence, publisher), HTML, PDF
with text, plain text, JSONL, JSON, CSV and Parquet (fields title or question, text or answer, url, date, licence,
publisher, section or sections; MedQuAD's form too) and MedlinePlus's XML of health topics.
The same command again reads only what changed. A run that is stopped or fails leaves the library as it was.
"""


@dataclass(frozen=True)
class LibrarySettings:
    source: str = required("folder, file, .txt list of web addresses, web address or Hub data set id")
    output: Path = required("folder of the library: new, or one that this command made from the same source")
    publisher: str = setting("", "who publishes the pages that do not say so; else their web host or folder")
    licence: str = setting("", "licence of the pages that do not name one")
    max_file_mb: int = setting(100, "larger files and web pages are not read")


@dataclass(frozen=True)
class DataSettings:
    output: Path = required("new folder for the prepared data")
    source: str = setting("medalpaca/medical_meadow_medical_flashcards", "Hub dataset id or local data file")
    source_config: str | None = setting(None, "configuration of the Hub dataset")
    source_revision: str | None = setting(None, "commit, tag or branch of the Hub dataset")
    license: str = setting("unknown", "licence of the data, for the manifest and the model card")
    attribution: str = setting("", "who to credit, for the manifest and the model card")
    max_samples: int = setting(5000, "pairs to keep, train and validation together; 0 keeps all")
    validation_size: int = setting(500, "pairs to hold back for validation")
    min_answer_words: int = setting(4, "shorter answers are removed")
    max_answer_words: int = setting(200, "longer answers are removed; about 270 tokens")
    seed: int = setting(42, "seed of the sample and the split")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["library"]:
        return library_main(argv[1:])
    settings = parse_settings(DataSettings, argv, __doc__)
    check_settings(settings)
    source = read_source(settings.source, settings.source_config, settings.source_revision)
    with new_folder(settings.output) as folder:
        log = StepLog()
        pairs = clean_pairs(source, settings, log)
        pairs = drop_near_duplicates(pairs, log)
        pairs = sample_pairs(pairs, settings, log)
        clusters = cluster_pairs(pairs, load_rules().generic_words, lambda x: progress(x, "clustering"))
        train, validation = split_clusters(clusters, settings.validation_size, settings.seed)
        records = [
            make_record(*pair, f"{Path(source.name).stem}-{number:05}", source.name, cluster)
            for number, (pair, cluster) in enumerate(zip(pairs, clusters, strict=True))
        ]
        write_records((records[i] for i in train), folder / "train.jsonl")
        write_records((records[i] for i in validation), folder / "validation.jsonl")
        write_manifest(folder, source, settings, log, [records[i] for i in train], [records[i] for i in validation])
    print(f"{len(train):,} train and {len(validation):,} validation pairs of {len(source.rows):,} in {settings.output}")
    return 0


def library_main(argv: Sequence[str]) -> int:
    settings = parse_settings(LibrarySettings, argv, LIBRARY_HELP)
    from medical_assistant.library.build import BuildSettings, build_library  # not for --help: lancedb takes a second

    try:
        with ExitStack() as bars:  # closed before an error is told
            summary = build_library(BuildSettings(**asdict(settings)), start_progress=partial(bytes_progress, bars))
    except KeyboardInterrupt:
        print(f"Stopped: {settings.output} is as it was before. The same command begins again.", file=sys.stderr)
        raise
    for warning in summary.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(summary.lines(settings.output)))
    return 0


def check_settings(settings: DataSettings) -> None:
    if settings.validation_size < 1 or settings.max_samples < 0:
        raise UserError("--validation-size must be 1 or more, and --max-samples 0 or more.")
    if 0 < settings.max_samples <= settings.validation_size:
        raise UserError("--validation-size must be below --max-samples: some pairs must be left to train on.")


def clean_pairs(source: Source, settings: DataSettings, log: StepLog) -> list[Pair]:
    rules = load_rules()
    seen: set[tuple[str, str]] = set()
    pairs: list[Pair] = []
    for row in progress(source.rows, "cleaning"):
        question, answer = map(repair_text, question_answer(row))
        problem = rejection(question, answer, rules, settings.min_answer_words, settings.max_answer_words)
        key = (question.casefold(), answer.casefold())
        if problem is None and key in seen:
            problem = "exact_duplicate", "the same question and answer stand earlier in the data"
        if problem:
            log.remove(*problem, question, answer)
        else:
            seen.add(key)
            pairs.append((question, answer))
    if len(pairs) <= settings.validation_size:
        raise UserError(
            f"{settings.source} has {len(pairs)} usable pairs of {len(source.rows)}, too few for "
            f"--validation-size {settings.validation_size}: give more data or a smaller validation."
        )
    return pairs


def drop_near_duplicates(pairs: list[Pair], log: StepLog) -> list[Pair]:
    repeats = near_duplicates(pairs, lambda x: progress(x, "near-duplicates"))
    for number in repeats:
        log.remove("near_duplicate", "nearly the same text stands earlier in the data", *pairs[number])
    return [pair for number, pair in enumerate(pairs) if number not in repeats]


def sample_pairs(pairs: list[Pair], settings: DataSettings, log: StepLog) -> list[Pair]:
    if not 0 < settings.max_samples < len(pairs):
        return pairs
    kept = set(random.Random(settings.seed).sample(range(len(pairs)), settings.max_samples))
    for number, pair in enumerate(pairs):
        if number not in kept:
            log.remove("sampled_out", f"more than --max-samples {settings.max_samples} pairs were left", *pair)
    return [pairs[number] for number in sorted(kept)]


def write_manifest(
    folder: Path, source: Source, settings: DataSettings, log: StepLog, train: list[Record], validation: list[Record]
) -> None:
    options = {key: value for key, value in asdict(settings).items() if key not in ("output", "source")}
    manifest = {
        "source": {"name": source.name, "revision": source.revision, "rows": len(source.rows)},
        "license": settings.license,
        "attribution": settings.attribution,
        "settings": options,
        "removed": log.as_rows(),
        "train_rows": len(train),
        "validation_rows": len(validation),
        "clusters": {
            "train": len({record["cluster"] for record in train}),
            "validation": len({record["cluster"] for record in validation}),
            "on_both_sides": len({r["cluster"] for r in train} & {r["cluster"] for r in validation}),
        },
        "sha256": {name: file_sha256(folder / name) for name in ("train.jsonl", "validation.jsonl")},
    }
    write_json(folder / "manifest.json", manifest)


def progress(items: Iterable[Item], step: str) -> Iterable[Item]:
    """Return `items` behind a progress bar that appears once a step takes over two seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=step, delay=2, file=sys.stderr)


def bytes_progress(bars: ExitStack, total: int) -> Callable[[float], None]:
    """Return what advances a progress bar of `total` bytes, with rate and time left; it appears after two seconds."""
    from tqdm import tqdm

    bar = tqdm(total=total or None, desc="reading", unit="B", unit_scale=True, delay=2, leave=False, file=sys.stderr)
    bars.enter_context(bar)
    return lambda done: bar.update(done) and None


if __name__ == "__main__":
    run_script(main)
