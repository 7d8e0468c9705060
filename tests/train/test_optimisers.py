"""Muon for matrices, AdamW for the rest: one optimiser to the training loop, its state kept like any other's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mindmerger.errors import InputError
from mindmerger_train.engine import Schedule
from mindmerger_train.optimisers import VECTOR_RATE, make_optimiser

MUON = Schedule(tokens=10, lr=1e-2, optimiser="muon", weight_decay=0.1)
DATA = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def run(module: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        module(DATA).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_matrices_go_as_with_muon_and_vectors_as_with_adamw() -> None:
    ours, theirs = network(), network()
    optimiser = make_optimiser(ours.parameters(), MUON)
    for group in optimiser.param_groups:
        group["lr"] = 1e-2 * group["rate"]
    run(ours, optimiser, 3)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, lr=1e-2 * VECTOR_RATE, betas=MUON.betas, eps=MUON.eps, weight_decay=0.1)
    for _ in range(3):
        theirs(DATA).square().sum().backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_run_goes_on_from_its_state_to_the_last_bit() -> None:
    whole, first = network(), network()
    run(whole, make_optimiser(whole.parameters(), MUON), 6)
    optimiser = make_optimiser(first.parameters(), MUON)
    run(first, optimiser, 3)
    state = copy.deepcopy(optimiser.state_dict())
    assert state["state"] and not same(first, whole)
    second = network()
    second.load_state_dict(first.state_dict())
    optimiser = make_optimiser(second.parameters(), MUON)
    optimiser.load_state_dict(state)
    run(second, optimiser, 3)
    assert same(second, whole)


def test_the_rate_of_a_group_counts_after_loading_too() -> None:
    module = network()
    parameters = list(module.parameters())
    groups = [{"params": parameters[:2], "rate": 0.0}, {"params": parameters[2:], "rate": 1.0}]
    optimiser = make_optimiser(groups, MUON)
    optimiser.load_state_dict(optimiser.state_dict())
    for group in optimiser.param_groups:
        group["lr"] = MUON.lr * group["rate"]
    run(module, optimiser, 1)
    moved = [not torch.equal(p, q) for p, q in zip(module.parameters(), network().parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_a_state_of_another_optimiser_is_refused() -> None:
    module = network()
    other = make_optimiser(module.parameters(), Schedule(tokens=10, lr=1e-3))
    run(module, other, 1)
    with pytest.raises(ValueError, match="param"):
        make_optimiser(module.parameters(), MUON).load_state_dict(other.state_dict())


def test_vectors_alone_need_no_muon() -> None:
    vector = nn.Parameter(torch.ones(3))
    optimiser = make_optimiser([vector], MUON)
    vector.sum().backward()
    optimiser.step()
    assert bool((vector < 1).all())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="adamw or muon, not 'sgd'"):
        Schedule(tokens=1, lr=1e-3, optimiser="sgd")
