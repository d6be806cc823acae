"""The members of the InternLM-XComposer2 family and everything in which they differ.

All other modules ask a `Member`; none compares names of models. Source: MODEL.md and MODEL25.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ixtune.errors import IxtuneError, UsageError, choice

_TOKEN_SIDE = 28
"""Side of the pixels behind one image token: a 2x2 block of patches of 14 pixels."""

_TERMS = (
    "the weights of {} are open for academic research, and free commercial use requires an "
    "application to their authors; the code they came with is Apache-2.0"
)


class Rule(NamedTuple):
    """Rule for the size of a resized image and the position of its padding.

    Attributes:
        name: Name in manifests and in `--layout-rule`.
        growth: The longer side gets at most as many crops as this multiple of it fills; None for as many as hd_num has.
        centered: Pad on both sides, not only at the bottom (of a portrait: at the right).
    """

    name: str
    growth: float | None
    centered: bool


class Branch(NamedTuple):
    """A PLoRA branch of the released weights: its rank, and the alpha that the original keeps in code."""

    rank: int
    alpha: int

    def of_rank(self, rank: int) -> dict[str, int]:
        """Return rank and alpha of a branch of another rank with the same scale, as config.json holds them."""
        return {"rank": rank, "alpha": self.alpha * rank // self.rank}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model of the family, with the layout rule in use.

    Attributes:
        name: Name in `--model`, manifests and adapters.
        title: Its full name.
        hub_id: Its repository on the Hugging Face hub.
        crop: Side of a crop in pixels, the input size of the vision tower.
        plora_wqkv: PLoRA of wqkv.
        plora_others: PLoRA of wo, w1, w2 and w3.
        rules: Its layout rules, from that of the official fine-tuning to that of the original's chat.
        rule: The layout rule in use.
        hd_num: Usual hd_num of the original's chat for a single image.
        hd_num_among: Usual hd_num of each of several images; None for `hd_num`.
        image_first: An image without a placeholder goes in front of the whole text; else it is refused.
        chat_system: The original's chat has a system prompt unless the caller removes it.
        chat_bos: The original's chat puts BOS in front of every run of text between images.
        trained_tokens: Length of the contexts it was trained on.
        tokenizer_sha256: SHA-256 of the released tokenizer.model; None if unknown.
        lmdeploy_hd_num: hd_num of lmdeploy 0.13, the last version that serves it.
        lmdeploy_function: The function of the original's ixc_utils.py by which lmdeploy recognizes it.
    """

    name: str
    title: str
    hub_id: str
    crop: int
    plora_wqkv: Branch
    plora_others: Branch
    rules: tuple[Rule, ...]
    rule: Rule
    hd_num: int
    hd_num_among: int | None
    image_first: bool
    chat_system: bool
    chat_bos: bool
    trained_tokens: int
    tokenizer_sha256: str | None
    lmdeploy_hd_num: int
    lmdeploy_function: str

    @property
    def terms(self) -> str:
        """License terms of the weights in one line."""
        return _TERMS.format(self.title)

    @property
    def view_side(self) -> int:
        """Vectors along the side of one view: patches merged 2x2."""
        return self.crop // _TOKEN_SIDE

    @property
    def plora_ranks(self) -> tuple[int, int]:
        """PLoRA ranks of wqkv and of the other linear layers in the released weights."""
        return self.plora_wqkv.rank, self.plora_others.rank

    def plora(self, ranks: tuple[int, int] | None = None) -> dict[str, dict[str, int]]:
        """Return `plora` of a config.json, by default of the released weights."""
        wqkv, others = ranks or self.plora_ranks
        return {"wqkv": self.plora_wqkv.of_rank(wqkv), "others": self.plora_others.of_rank(others)}

    def tokens(self, rows: int, cols: int) -> int:
        """Return the tokens of an image of rows x cols crops, e.g. 144 (rows cols + 1) + 1 + 12 (rows + 1)."""
        return sum(self.token_parts(rows, cols).values())

    def token_parts(self, rows: int, cols: int) -> dict[str, int]:
        """Return the token count of an image of rows x cols crops by purpose (MODEL.md 2.5).

        The global view with a newline token for each of its rows, the separator token, the crops, and a newline token
        for each row of their common map.
        """
        side = self.view_side
        return {
            "global_view": side**2,
            "global_newlines": side,
            "separator": 1,
            "crops": side**2 * rows * cols,
            "crop_newlines": side * rows,
        }

    def like(self, hd_num: int) -> int:
        """Return the hd_num with about as many tokens as `hd_num` crops of the first member: equal pixels."""
        return max(1, round(hd_num * (FOUR_KHD.crop / self.crop) ** 2))

    @property
    def at_inference(self) -> Member:
        """Return this member with the layout rule of the original's chat."""
        return replace(self, rule=self.rules[-1])

    def with_rule(self, name: str | None) -> Member:
        """Return this member with a layout rule; None for that of the official fine-tuning.

        Raises:
            UsageError: It has no such rule.
        """
        known = {rule.name: rule for rule in self.rules}
        if name is not None and name not in known:
            raise UsageError(
                f"{self.title} has no layout rule {name!r}", where="--layout-rule", hint=choice(name, known)
            )
        return replace(self, rule=known[name] if name is not None else self.rules[0])

    def record(self) -> dict[str, str]:
        """Return how manifests and adapters store it; nothing for the first member, the only one in older files."""
        return {} if self == FOUR_KHD else {"model": self.name, "layout_rule": self.rule.name}


_FILL = Rule("fill", None, True)
_FINE_TUNING = Rule("fine-tuning", 1.5, True)

FOUR_KHD = Member(
    name="4khd",
    title="InternLM-XComposer2-4KHD",
    hub_id="internlm/internlm-xcomposer2-4khd-7b",
    crop=336,
    plora_wqkv=Branch(8, 16),
    plora_others=Branch(256, 256),
    rules=(_FILL,),
    rule=_FILL,
    hd_num=25,
    hd_num_among=None,
    image_first=False,
    chat_system=True,
    chat_bos=True,
    trained_tokens=32768,  # max_position_embeddings
    tokenizer_sha256="f868398fc4e05ee1e8aeba95ddf18ddcc45b8bce55d5093bead5bbf80429b48b",
    lmdeploy_hd_num=25,
    lmdeploy_function="HD_transform",
)
TWO_FIVE = Member(
    name="2.5",
    title="InternLM-XComposer-2.5",
    hub_id="internlm/internlm-xcomposer2d5-7b",
    crop=560,
    plora_wqkv=Branch(256, 256),
    plora_others=Branch(256, 256),
    rules=(_FINE_TUNING, Rule("inference", 1.0, False)),
    rule=_FINE_TUNING,
    hd_num=24,
    hd_num_among=6,
    image_first=True,
    chat_system=False,
    chat_bos=False,
    trained_tokens=24576,  # 24K; beyond that it extrapolates by rope_scaling
    tokenizer_sha256=None,
    lmdeploy_hd_num=24,
    lmdeploy_function="Image_transform",
)
MEMBERS = {member.name: member for member in (FOUR_KHD, TWO_FIVE)}

ANY_TITLE = " or ".join(member.title for member in MEMBERS.values())

UNSUPPORTED = {
    "video": "videos are not supported: the original pastes frames into one tall image, which ixtune does not do",
    "audio": "audio is not supported: it needs another model in front of this one",
    "web": "web pages are not supported: the original writes them with more LoRA weights, not loaded by ixtune",
    "article": "articles are not supported: the original writes them with more LoRA weights, not loaded by ixtune",
}
"""Features of a member's original code that ixtune does not support, one sentence each."""


def member_named(name: str | None, rule: str | None = None) -> Member:
    """Return the member with this name and layout rule; None for the first member, and for its fine-tuning rule.

    Raises:
        UsageError: There is no such member, or it has no such rule.
    """
    found = FOUR_KHD if name is None else MEMBERS.get(name)
    if found is None:
        raise UsageError(f"there is no model {name!r}", where="--model", hint=choice(str(name), MEMBERS))
    return found.with_rule(rule)


def member_of(record: Mapping[str, Any]) -> Member:
    """Return the member that a manifest, an adapter or a merged model records, see `Member.record`."""
    return member_named(record.get("model"), record.get("layout_rule"))


def member_of_crop(side: int) -> Member | None:
    """Return the member whose crops have this side; None if there is none."""
    return next((member for member in MEMBERS.values() if member.crop == side), None)


def member_of_layout(rows: int, cols: int, tokens: int) -> Member:
    """Return the member for which an image of rows x cols crops has this number of tokens.

    Raises:
        ValueError: No member gives it this number of tokens.
    """
    for member in MEMBERS.values():
        if member.tokens(rows, cols) == tokens:
            return member
    raise ValueError(f"no model gives an image of {rows} x {cols} crops {tokens} tokens")


def member_of_hub_id(name: str) -> Member | None:
    """Return the member whose repository this is; None for other names."""
    return next((member for member in MEMBERS.values() if member.hub_id == name), None)


def require_same(first: Member, second: Member, what: str, where: str | None, hint: str) -> None:
    """Raise if something made for one member is used with another; layout rules may differ.

    Raises:
        IxtuneError: They are different members.
    """
    if first.name != second.name:
        raise IxtuneError(f"{what} is for {first.title}, the base is {second.title}", where=where, hint=hint)
