"""The sequence and its loss against an independent reading of the published layout (docs/method.md)."""

from __future__ import annotations

import torch
from torch import nn

from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.encoders import Encoder
from mindmerger_train.layout import Row
from mindmerger_train.stages import MergedTask
from mindmerger_train.transfer import pad_right

ROWS = [
    Row([5, 6, 7, 8, 9], [20, 21, 22], [30, 31, 32, 2]),
    Row([5, 9], [20, 21, 22, 23, 24, 25], [40, 2]),
    Row([11, 12, 13], [26], [33, 34, 35, 36, 37, 2]),
]


def published_loss(
    encoder: Encoder, llm: nn.Module, checkpoint: Checkpoint, rows: list[Row], prompts: bool
) -> torch.Tensor:
    """Each part padded on its own, the whole squeezed: padding to the left, all-padding columns dropped."""
    embed = llm.get_input_embeddings()
    ids, encoder_mask = pad_right([row.encoder_ids for row in rows])
    mapped = checkpoint.merger.mlp(encoder(ids, encoder_mask))
    count = len(rows)
    ones = torch.ones(count, 1, dtype=torch.int64)
    parts = [
        embed(torch.full((count, 1), checkpoint.prompt.bos_id)),
        mapped,
        checkpoint.merger.end_boundary.expand(count, 1, -1),
    ]
    masks = [ones, encoder_mask, ones]

    def left(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, sequences))
        padded = torch.tensor([[0] * (longest - len(s)) + s for s in sequences])
        mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
        return padded, mask

    if prompts:
        prompt_ids, prompt_mask = left([list(row.prompt_ids) for row in rows])
        parts.append(embed(prompt_ids))
        masks.append(prompt_mask)
    label_ids, label_mask = left([list(row.label_ids) for row in rows])
    parts.append(embed(label_ids))
    masks.append(label_mask)
    embeddings, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
    labels = torch.full_like(mask, -100)
    labels[:, -label_ids.shape[1] :] = label_ids.masked_fill(label_mask == 0, -100)
    # Squeeze: a stable sort of the mask moves padding to the left and keeps the order of the rest.
    order = torch.argsort(mask, dim=1, stable=True)
    embeddings = torch.gather(embeddings, 1, order[..., None].expand_as(embeddings))
    mask = torch.gather(mask, 1, order)
    keep = mask.sum(0) > 0
    embeddings, mask, labels = embeddings[:, keep], mask[:, keep], labels[:, keep]
    return llm(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss


def test_augmentation_loss_is_the_published_one(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    loss, count = MergedTask(llm, encoder, checkpoint).loss(ROWS)
    assert count == 12
    expected = published_loss(encoder, llm, checkpoint, ROWS, prompts=True)
    assert abs(float(loss) / count - float(expected)) < 1e-5


def test_mapping_loss_is_the_published_one(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    rows = [Row(row.encoder_ids, [], row.label_ids) for row in ROWS]
    loss, count = MergedTask(llm, encoder, checkpoint).loss(rows)
    expected = published_loss(encoder, llm, checkpoint, rows, prompts=False)
    assert abs(float(loss) / count - float(expected)) < 1e-5


def test_gradients_are_the_published_ones_and_reach_only_the_merger(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    loss, count = MergedTask(llm, encoder, checkpoint).loss(ROWS)
    (loss / count).backward()
    found = {name: parameter.grad.clone() for name, parameter in checkpoint.merger.named_parameters()}
    assert all(parameter.grad is None for module in (encoder, llm) for parameter in module.parameters())
    checkpoint.merger.zero_grad()
    published_loss(encoder, llm, checkpoint, ROWS, prompts=True).backward()
    for name, parameter in checkpoint.merger.named_parameters():
        assert found[name].abs().max() > 0, name
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_row_without_soft_prompt_is_the_llm_alone(tiny_checkpoint):
    encoder, llm, checkpoint = tiny_checkpoint
    row = Row(None, [20, 21], [30, 31, 2])
    loss, count = MergedTask(llm, encoder, checkpoint).loss([row])
    ids = torch.tensor([[1, 20, 21, 30, 31, 2]])
    labels = torch.tensor([[-100, -100, -100, 30, 31, 2]])
    assert abs(float(loss) / count - float(llm(input_ids=ids, labels=labels).loss)) < 1e-5


def test_padding_does_not_change_an_example(tiny_checkpoint):
    """What an example costs must not depend on its neighbours in the batch."""
    encoder, llm, checkpoint = tiny_checkpoint
    task = MergedTask(llm, encoder, checkpoint)
    together = float(task.loss(ROWS)[0])
    alone = sum(float(task.loss([row])[0]) for row in ROWS)
    assert abs(together - alone) < 1e-3
