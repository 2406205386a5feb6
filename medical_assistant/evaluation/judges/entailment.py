"""A local model of natural language inference as judge of statements.

The answer is the premise and the statement the hypothesis, as in K-QA (Manes et al. 2024, arXiv:2401.14493). An answer
longer than the model reads is cut into overlapping windows; the greatest entailment over the windows counts, as in
SummaC's zero-shot model (Laban et al. 2022, arXiv:2111.09525). No model comes with the project: the user names one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.judge import Claim, Verdict

# Models of inference are trained on short pairs; longer input than this is outside of what most have seen.
LONGEST_INPUT_TOKENS = 512
# A window must hold a sentence or two to entail anything.
SHORTEST_WINDOW_TOKENS = 16
# Part of the input that the question may take.
QUESTION_SHARE = 0.25

_CLASSES = {"entailment": "entailed", "contradiction": "contradicted", "neutral": "neither"}


class NliJudge:
    """A sequence classifier of three classes. Use from one thread."""

    kind = "nli"
    prompt_sha256: str | None = None

    def __init__(self, model: str, *, revision: str | None = None, batch_size: int = 8) -> None:
        """Load `model`, a Hub id or a folder, onto the GPU where there is one.

        Raises `UserError` when it cannot be loaded, has no labels entailment, contradiction and neutral, or has a
        tokenizer that does not tell where in the text a token is.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
            network = AutoModelForSequenceClassification.from_pretrained(
                model, revision=revision, dtype=torch.float32, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"The NLI model {model} cannot be loaded ({reason}): check the id or the folder."
            ) from error
        if not self._tokenizer.is_fast:
            raise UserError(f"The NLI model {model} has only a slow tokenizer: choose another model.")
        self._columns = find_columns(network.config.id2label, model)
        # A folder's name, not its path: the name goes into reports.
        self.name = Path(model).resolve().name if Path(model).is_dir() else model
        self.revision: str | None = getattr(network.config, "_commit_hash", None)
        self._limit = input_limit(self._tokenizer.model_max_length, network.config)
        self._batch_size = batch_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = network.to(self._device).eval()

    def verdicts(self, claims: Sequence[Claim]) -> Generator[tuple[int, Verdict], None, None]:
        """Yield (index of the claim, verdict) in order. A statement too long for the model has no verdict.

        Over the windows of an answer the greatest probability of entailment and of contradiction count, and the
        least of neutral; the verdict is the greatest of the three.

        Raises `UserError` when the GPU's memory does not hold a batch.
        """
        for start in range(0, len(claims), self._batch_size):
            group = claims[start : start + self._batch_size]
            pairs = [(number, pair) for number, claim in enumerate(group) for pair in self._windows(claim)]
            rows = self._probabilities([pair for _, pair in pairs])
            for number in range(len(group)):
                own = [row for (owner, _), row in zip(pairs, rows, strict=True) if owner == number]
                yield start + number, decide(own) if own else Verdict(None, "the statement is too long for the model")

    def _windows(self, claim: Claim) -> list[tuple[str, str]]:
        """Return (premise, hypothesis) for each window of the answer, the question before each."""
        question = self._cut(claim.question, 0, int(QUESTION_SHARE * self._limit))
        # Joined texts may have a few tokens more than their parts, at the seams.
        special = self._tokenizer.num_special_tokens_to_add(pair=True) + 4
        size = self._limit - special - self._count(question) - self._count(claim.statement)
        if size < SHORTEST_WINDOW_TOKENS:
            return []
        total = self._count(claim.answer)
        starts = [0] if total <= size else window_starts(total, size)
        return [(f"{question} {self._cut(claim.answer, start, size)}", claim.statement) for start in starts]

    def _probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        """Return the probability of each label of `judge.LABELS`, for each pair."""
        import torch

        rows: list[dict[str, float]] = []
        for start in range(0, len(pairs), self._batch_size):
            premises, hypotheses = zip(*pairs[start : start + self._batch_size], strict=True)
            inputs = self._tokenizer(
                list(premises),
                list(hypotheses),
                truncation="only_first",  # never acts but where a cut text has more tokens than it had whole
                max_length=self._limit,
                padding=True,
                return_tensors="pt",
            ).to(self._device)
            try:
                with torch.inference_mode():
                    table = self._model(**inputs).logits.float().softmax(dim=-1).tolist()
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    "The GPU has no memory left for the NLI model: free it or choose a smaller one."
                ) from error
            rows += [{label: row[column] for label, column in self._columns.items()} for row in table]
        return rows

    def _count(self, text: str) -> int:
        return len(self._offsets(text))

    def _cut(self, text: str, start: int, size: int) -> str:
        """Return the part of `text` that tokens `start` to `start + size` come from."""
        part = self._offsets(text)[start : start + size]
        return text[part[0][0] : part[-1][1]] if part else ""

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets: list[tuple[int, int]] = encoding["offset_mapping"]
        return offsets


def window_starts(total: int, size: int) -> list[int]:
    """Return the first tokens of windows of `size` that cover `total` tokens, each half over the one before.

    The last window ends with the text, so that no window is a scrap.
    """
    step = max(1, size // 2)
    return [*range(0, total - size, step), total - size]


def decide(windows: Sequence[Mapping[str, float]]) -> Verdict:
    """Return the verdict over the windows of one answer, each with a probability for each label."""
    best = {
        "entailed": max(row["entailed"] for row in windows),
        "contradicted": max(row["contradicted"] for row in windows),
        "neither": min(row["neither"] for row in windows),
    }
    return Verdict(max(best, key=lambda label: best[label]))


def find_columns(id2label: Mapping[int, str], model: str) -> dict[str, int]:
    """Return the column of each label of `judge.LABELS` in the model's output, found by name, any case and order.

    Raises `UserError` when entailment, contradiction or neutral is missing, as in a model that was never trained
    for inference, or for entailment against the rest only.
    """
    names = {str(name).strip().lower(): int(column) for column, name in id2label.items()}
    if not _CLASSES.keys() <= names.keys():
        found = ", ".join(str(name) for name in list(id2label.values())[:5])
        raise UserError(f"{model} has the labels {found}: choose a model with entailment, contradiction and neutral.")
    return {label: names[name] for name, label in _CLASSES.items()}


def input_limit(tokenizer_limit: int, config: Any) -> int:
    """Return the longest input in tokens: the least of the tokenizer's limit, the positions and our own."""
    positions = getattr(config, "max_position_embeddings", None) or LONGEST_INPUT_TOKENS
    return min(LONGEST_INPUT_TOKENS, tokenizer_limit, positions if positions > 0 else LONGEST_INPUT_TOKENS)
