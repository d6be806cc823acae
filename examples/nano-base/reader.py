"""The network with ideal cells in place of the tower's, guided attention, and the head for CTC.

A decoder that sees cells of two to four characters learns nothing from answers alone: attention that starts out even
does not find the next character. So two of its layers are guided: the loss asks a head of each key/value group to
attend to the cells that hold the character that comes next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from network import ImageRows, IXC2ForCausalLM, configuration, heads, lay_out, merge_2x2, normalise, overview_of
from samples import OVERVIEW, PADDING, Batch, Words
from torch import nn
from tower import FRAMES, Head

GUIDED = {2: (0, 2), 3: (0, 2)}  # layer: heads
SPREAD = 0.06  # of the first weights: about 1 / sqrt(192)


class IdealCells(nn.Module):
    """The vector of a cell that was read perfectly: the sum of its characters' vectors, each changed by its place.

    The characters' vectors start as the decoder's own, and the places share them. So one direction learned for one
    character at one place serves all: with 6 x 98 unrelated vectors, learning to copy took three times the steps.
    """

    def __init__(self, characters: torch.Tensor) -> None:
        super().__init__()
        width = characters.shape[1]
        self.characters = nn.Parameter(characters.clone())
        self.places = nn.Parameter(torch.eye(width).repeat(FRAMES, 1, 1) + 0.05 * torch.randn(FRAMES, width, width))
        self.others = nn.Parameter(SPREAD * torch.randn(3, width))  # a blank cell, a newline, a separator

    def forward(self, contents: torch.Tensor) -> torch.Tensor:
        """int64 [rows, 6] -> [rows, width]."""
        table = torch.einsum("cd,fde->fce", self.characters, self.places).flatten(0, 1)
        table = torch.cat((table, self.others, torch.zeros_like(self.others[:1])))
        return nn.functional.embedding_bag(contents, table, mode="sum", padding_idx=PADDING)


class Reader(nn.Module):
    """The network with the vectors of ideal cells and the head for CTC.

    Characters have the same first vector as an input, as an output and in a cell, so that matching and copying are
    close to the identity when training starts.
    """

    def __init__(self, words: Words) -> None:
        super().__init__()
        self.network = IXC2ForCausalLM._from_config(configuration(SPREAD), attn_implementation="sdpa")
        first = self.network.output.weight.data
        self.network.model.tok_embeddings.weight.data.copy_(first)
        self.ideal = IdealCells(first[words.classes])
        self.head = Head()

    def forward(self, batch: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of the answers, of the guided attention, and the logits of the answers' rows."""
        decoder = self.network.model
        embeds = decoder.tok_embeddings(batch.ids)
        flat = embeds.reshape(-1, embeds.shape[-1]).index_copy(0, batch.image_rows, vectors)
        hidden = flat.view_as(embeds)
        angles = decoder.rotary(batch.positions, hidden.dtype)
        images = ImageRows.of(batch.image_rows)
        guide = hidden.new_zeros(())
        for number, layer in enumerate(decoder.layers):
            if number in GUIDED and len(batch.guided):
                guide = guide + self._guide(layer, hidden, angles, batch, GUIDED[number])
            hidden = layer(hidden, angles, images, batch.mask, None)
        rows = decoder.norm(hidden).flatten(0, 1)[batch.asking]
        logits = self.network.output(rows)
        return nn.functional.cross_entropy(logits, batch.labels), guide / len(GUIDED), logits

    def _guide(
        self, layer: Any, hidden: torch.Tensor, angles: Any, batch: Batch, chosen: Iterable[int]
    ) -> torch.Tensor:
        """Return -log of the attention that the guided heads give to the cells of the next character."""
        attention = layer.attention
        qkv = attention.wqkv(layer.attention_norm(hidden))
        flat = qkv.flatten(0, 1)
        added = attention.wqkv_plora(layer.attention_norm(hidden).flatten(0, 1)[batch.image_rows])
        qkv = flat.index_add(0, batch.image_rows, added).view_as(qkv)
        query, key, _ = heads(qkv, angles, attention.head_dim, attention.num_key_value_groups)
        length = hidden.shape[1]
        asking = batch.asking[batch.guided]
        which = torch.div(asking, length, rounding_mode="floor")
        losses = []
        for head in chosen:
            for index in which.unique().tolist():
                of = which == index
                at = asking[of] - index * length
                scores = query[index, head, at] @ key[index, head // attention.num_key_value_groups].T
                scores = scores * attention.scaling
                scores = scores.masked_fill(~batch.mask[index, 0, at], float("-inf"))
                logs = scores.log_softmax(-1)
                losses.append(-logs.masked_fill(~batch.allowed[of], float("-inf")).logsumexp(-1))
        return torch.cat(losses).mean()

    def ideal_vectors(self, batch: Batch) -> torch.Tensor:
        """Return the ideal cells' vectors [rows, 192]."""
        vectors: torch.Tensor = self.ideal(batch.contents)
        return vectors

    def tower_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the given rows before the projector [rows, 512] and the CTC logits of the crops' rows."""
        network = self.network
        views = []
        for one in batch.samples:
            assert one.crops is not None
            crops = torch.from_numpy(one.crops).to(batch.ids.device)
            if min(one.rows) < OVERVIEW and one.grid != (1, 1):
                views.append(overview_of(crops, *one.grid))
            views.append(normalise(crops))
        maps = merge_2x2(network.vit(torch.cat(views))[:, 1:])
        kept, crops_maps, at = [], [], 0
        for one in batch.samples:
            count = one.grid[0] * one.grid[1]
            if one.grid == (1, 1):  # the global view is the crop
                part, at = maps[[at, at]], at + 1
            elif min(one.rows) < OVERVIEW:
                part, at = maps[at : at + 1 + count], at + 1 + count
            else:
                part, at = torch.cat((torch.zeros_like(maps[:1]), maps[at : at + count])), at + count
            crops_maps.append(part[1:])
            kept.append(lay_out(part, *one.grid, network.separators)[one.rows])
        return torch.cat(kept), self.head(torch.cat(crops_maps))

    @torch.no_grad()
    def fit_projector(self, batches: Iterable[Batch]) -> float:
        """Solve the projector for the ideal cells of some pages; return the share of their variance left over.

        Its first layer keeps the directions that the head for CTC reads, shifted to where GELU is nearly linear; the
        second is a ridge regression.
        """
        pairs = [(self.tower_rows(batch)[0], self.ideal_vectors(batch)) for batch in batches]
        given, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
        first, _, second = self.network.vision_proj
        important = self.head.linear.weight * self.head.norm.weight
        directions = torch.linalg.svd(important, full_matrices=False).Vh[: first.out_features]
        seen = given @ directions.T
        middle, spread = seen.mean(0), seen.std(0) + 1e-4
        first.weight.copy_(directions / spread[:, None])
        first.bias.copy_(2 - middle / spread)
        hidden = nn.functional.gelu(first(given))
        hidden = torch.cat((hidden, hidden.new_ones(len(hidden), 1)), 1)
        square = hidden.T @ hidden + 1e-3 * len(hidden) * torch.eye(hidden.shape[1], device=hidden.device)
        solved = torch.linalg.solve(square, hidden.T @ wanted)
        second.weight.copy_(solved[:-1].T)
        second.bias.copy_(solved[-1])
        return float((hidden @ solved - wanted).square().mean() / wanted.var(0).mean())
