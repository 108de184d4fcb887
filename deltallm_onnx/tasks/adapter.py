"""Our models as models of EleutherAI's lm-evaluation-harness. Imported only where lm_eval is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import TextTokenizer, end_of_sequence_ids
from deltallm_onnx.runtime.side_files import read_json
from deltallm_onnx.tasks.token_model import TokenModel

#: New tokens where a task names no number: the harness's own default.
_DEFAULT_NEW_TOKENS = 256


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A `TokenModel` behind the harness's three requests, greedy and with batches of one.

    Texts become tokens as in the harness's Hugging Face backend: contexts with the special tokens the tokenizer puts
    before a text, and what is too long loses its first tokens.

    Args:
        model: the model.
        folder: its directory, for the tokenizer and its special tokens.
        on_request: called after every request.
    """

    def __init__(self, model: TokenModel, folder: Path, *, on_request: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = TextTokenizer(folder)
        self._end_ids = end_of_sequence_ids(folder)
        self._prefix = _prefix_id(folder, self._tokenizer, self._end_ids)
        self._on_request = on_request or (lambda: None)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, the lowest of several; the first token of a text where there is none."""
        return min(self._end_ids, default=self._prefix)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special tokens are not put before a text that already begins with them."""
        own = self._tokenizer.encode(string, special_tokens=False)
        begin = self._tokenizer.begin_ids
        begun = bool(begin) and own[: len(begin)] == begin
        if add_special_tokens is False or (add_special_tokens is None and begun):
            return own
        return self._tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        answers = []
        for _texts, context, continuation in requests:
            answers.append(self._model.score(context, continuation))
            self._on_request()
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind its context, in nats, and whether it is the greedy one.

        Args:
            requests: instances whose `args` are (context, continuation).
            disable_tqdm: of the harness's progress bar.
        """
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text, in nats: windows that overlap by context only, every token scored once.

        Args:
            requests: instances whose `args` are (text,).
            disable_tqdm: unused.
        """
        del disable_tqdm
        answers = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._model.max_length,
                context_len=1,
            )
            scored = [self._model.score(*make_disjoint_window(window)) for window in windows]
            answers.append(sum(log_probability for log_probability, _greedy in scored))
            self._on_request()
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The greedy text behind each context, up to the first stop string, which is left out.

        Args:
            requests: instances whose `args` are (context, settings): until, max_gen_toks.
            disable_tqdm: unused.

        Raises:
            DeltaLLMError: for settings that draw at random.
        """
        del disable_tqdm
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        chosen = normalize_gen_kwargs(settings, _DEFAULT_NEW_TOKENS)
        if chosen.get("do_sample") or chosen.get("num_beams", 1) != 1:
            raise DeltaLLMError("The task wants text drawn at random or searched for: only greedy decoding is offered.")
        stops = [stop for stop in handle_stop_sequences(chosen.get("until"), eos=None) if stop]

        def stopped(tokens: Sequence[int]) -> bool:
            text = self._tokenizer.decode(tokens)
            return any(stop in text for stop in stops)

        tokens = self._model.generate(
            self.tok_encode(context),
            max_new_tokens=int(chosen["max_gen_toks"]),
            end_ids=self._end_ids,
            until=stopped if stops else None,
        )
        text: str = postprocess_generated_text(self._tokenizer.decode(tokens), stops, None)
        self._on_request()
        return text


def _prefix_id(folder: Path, tokenizer: TextTokenizer, end_ids: frozenset[int]) -> int:
    """The token before a text: what the tokenizer puts there, else the model's BOS token, else its EOS token."""
    sections = [read_json(folder / "config.json"), read_json(folder / "genai_config.json").get("model")]
    named = [section.get("bos_token_id") for section in sections if isinstance(section, dict)]
    found = [*tokenizer.begin_ids[-1:], *(i for i in named if type(i) is int and i >= 0), *sorted(end_ids)]
    if not found:
        raise DeltaLLMError(
            f"{folder} names no token that begins or ends a text: add bos_token_id or eos_token_id to its config.json."
        )
    return found[0]
