"""Many sequences in one forward: their tokens end to end, without padding, shared prefixes once.

transformers runs everything but the attention, which is ours (`attention.py`). A pack's segments
are gathered into groups of rows of about equal length behind the same path of earlier segments.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.engine import attention
from ptsearch.engine.attention import Attends, Rows, Store, Window
from ptsearch.engine.prefix import Plan
from ptsearch.quantize.kv import KV

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIGN = 32  # score rows of a multiple of this take half the time in the CPU's bf16 softmax
# Attention scores of one group: a few megabytes stay in a CPU's cache, a GPU wants large products.
SCORES = {"cpu": 2**21, "cuda": 2**26}

Place = tuple[int, int]  # a segment, and the offset of a token in it


def logits_at(
    model: "PreTrainedModel",
    plan: Plan,
    part: range,
    keep: Sequence[int],
    store: Store,
    places: Sequence[Place],
) -> Tensor:
    """Run some segments of a plan: logits (places, vocabulary) behind some of their tokens.

    The segments in `keep` leave their keys and values in `store`.
    """
    pack = Pack(plan, part, keep, store, model)
    rows = [pack.offsets[segment] + offset for segment, offset in places]
    where = torch.tensor(rows, dtype=torch.long, device=model.device)
    return forward(model, pack.ids, pack.positions, where, pack)


def forward(
    model: "PreTrainedModel", ids: Tensor, positions: Tensor, rows: Tensor, attends: Attends
) -> Tensor:
    """Logits at `rows` of the packed tokens. ids, positions: (1, T) -> (rows, vocabulary)."""
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=rows,
        packed=attends,
    )
    logits: Tensor = output.logits[0]
    return logits


def forget(store: Store, plan: Plan, part: range) -> None:
    """Drop what no segment behind `part` attends to."""
    for number in [number for number in store if plan.last[number] < part.stop]:
        del store[number]


class Pack:
    """One forward over some segments of a plan: their tokens end to end."""

    def __init__(
        self, plan: Plan, part: range, keep: Sequence[int], store: Store, model: "PreTrainedModel"
    ) -> None:
        """The segments in `keep` leave their keys and values in `store`."""
        self.offsets: dict[int, int] = {}  # segment -> its first token in the pack
        ids: list[int] = []
        positions: list[int] = []
        for number in part:
            tokens, start, _ = plan.segments[number]
            self.offsets[number] = len(ids)
            ids.extend(tokens)
            positions.extend(range(start, start + len(tokens)))
        self.ids = torch.tensor([ids], device=model.device)  # (1, T)
        self.positions = torch.tensor([positions], device=model.device)  # (1, T)
        self.store = store
        self.keep = {n: (self.offsets[n], len(plan.segments[n].tokens)) for n in keep}
        heads = model.config.get_text_config().num_attention_heads
        budget = SCORES[model.device.type] // heads
        self.groups = [
            self._rows(plan, numbers, model.device) for numbers in grouped(plan, part, budget)
        ]

    def _rows(
        self, plan: Plan, numbers: Sequence[int], device: torch.device
    ) -> tuple[Rows, Tensor]:
        """The segments as rows, and which tokens are their keys: (R, keys)."""
        _, start, path = plan.segments[numbers[0]]
        lengths = [len(plan.segments[n].tokens) for n in numbers]
        longest = max(lengths)
        first = torch.tensor([self.offsets[n] for n in numbers], device=device)[:, None]
        length = torch.tensor(lengths, device=device)[:, None]
        at = torch.arange(aligned(start + longest) - start, device=device)
        keys = first + at.minimum(length - 1)  # past a segment's end its last token again
        at, tokens = at[:longest], keys[:, :longest]
        places = torch.where(at < length, tokens, self.ids.shape[1])
        return Rows(path, start, tokens, places, start + at[None]), keys

    def attend(self, layer: int, query: Tensor, new: KV, window: Window) -> Tensor:
        """query: (T, H, D), new: (K, T, D) each -> (T, H, D)."""
        for segment, (first, count) in self.keep.items():
            copies = (part[:, first : first + count].clone() for part in new)
            self.store.setdefault(segment, {})[layer] = KV(*copies)
        tokens, heads, _ = query.shape
        out = query.new_empty(tokens + 1, heads * new.values.shape[-1])
        paths: dict[tuple[int, ...], KV | None] = {}
        for rows, keys in self.groups:
            if rows.path not in paths:
                paths[rows.path] = attention.path_of(self.store, rows.path, layer, window)
            kv = KV(*(part.transpose(0, 1)[keys].permute(2, 0, 1, 3) for part in new))
            rows.attend(query, kv, paths[rows.path], window, out)
        return out[:-1].view(tokens, heads, -1)


def grouped(plan: Plan, part: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Segments behind one path and of about equal length, so many that the scores of a head stay
    within the budget.
    """
    behind: dict[tuple[int, ...], list[int]] = {}
    for number in part:
        behind.setdefault(plan.segments[number].path, []).append(number)
    for numbers in behind.values():
        group: list[int] = []
        for number in sorted(numbers, key=lambda n: -len(plan.segments[n].tokens)):
            longest = len(plan.segments[(group or [number])[0]].tokens)
            shorter = longest - len(plan.segments[number].tokens)
            row_scores = longest * aligned(plan.segments[number].start + longest)
            full = (len(group) + 1) * row_scores > budget
            if group and (full or shorter > max(ALIGN // 2, longest // 4)):
                yield group
                group = []
            group.append(number)
        yield group


def aligned(length: int) -> int:
    """The next multiple of ALIGN."""
    return -(-length // ALIGN) * ALIGN
