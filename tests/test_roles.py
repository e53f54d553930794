from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_unitrole.reports.roles import (
    UnitRole,
    assign_roles,
    effective_set,
    role_transitions,
    summarize_roles,
)
from lightning_unitrole.reports.vocabulary import NO_ROLE, UNDECIDED

BOTH, TRAIN, VAL, NEITHER = UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER


@pytest.mark.parametrize(
    ("turning_point", "standing"),
    [(0, {0, 1, 2, 3, 4}), (1, {0, 1, 3, 4}), (3, {3, 1}), (4, {3}), (5, set())],
    ids=lambda value: f"{value} off" if isinstance(value, int) else None,
)
def test_effective_set_is_what_still_stands(turning_point: int, standing: set[int]) -> None:
    effective = effective_set(torch.tensor([3, 1, 4, 0, 2]), turning_point)
    assert effective.dtype == torch.bool
    assert set(effective.nonzero().flatten().tolist()) == standing


def test_each_pair_of_answers_has_its_role() -> None:
    train = torch.tensor([[True, True, False, False]])
    val = torch.tensor([[True, False, True, False]])
    roles = assign_roles(train, val)
    assert roles.dtype == torch.uint8
    assert roles.tolist() == [[BOTH, TRAIN, VAL, NEITHER]]


@pytest.mark.parametrize(
    ("column", "summary"),
    [
        pytest.param([BOTH, BOTH, NEITHER], BOTH, id="majority"),
        pytest.param([NEITHER, NEITHER, BOTH], NEITHER, id="majority of the least"),
        pytest.param([TRAIN, VAL, VAL, TRAIN], VAL, id="tie to the larger"),
        pytest.param([BOTH, TRAIN, VAL, NEITHER], BOTH, id="four-way tie"),
        pytest.param([NEITHER, TRAIN], TRAIN, id="tie of the smaller two"),
        pytest.param([NO_ROLE, NO_ROLE, TRAIN], TRAIN, id="classes without images have no vote"),
        pytest.param([NO_ROLE, NO_ROLE], NO_ROLE, id="no class with images"),
    ],
)
def test_summary(column: list[int], summary: int) -> None:
    roles = torch.tensor(column, dtype=torch.uint8).unsqueeze(1).expand(-1, 3)
    found = summarize_roles(roles)
    assert found.dtype == torch.uint8
    assert found.tolist() == [summary] * 3


def test_transitions_by_hand() -> None:
    before = torch.tensor(
        [[BOTH, BOTH, TRAIN, NEITHER, NO_ROLE], [VAL] * 5, [UNDECIDED, BOTH, UNDECIDED, NO_ROLE, UNDECIDED]],
        dtype=torch.uint8,
    )
    after = torch.tensor(
        [[BOTH, TRAIN, NEITHER, NEITHER, BOTH], [NO_ROLE] * 5, [BOTH, UNDECIDED, UNDECIDED, UNDECIDED, NO_ROLE]],
        dtype=torch.uint8,
    )
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[BOTH, BOTH] = expected[BOTH, TRAIN] = expected[TRAIN, NEITHER] = expected[NEITHER, NEITHER] = 1
    assert torch.equal(role_transitions(before, after), expected)


pairs = st.lists(st.tuples(*[st.sampled_from([0, 1, 2, 3, UNDECIDED, NO_ROLE])] * 2), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_transitions_relations(found: list[tuple[int, int]]) -> None:
    before, after = torch.tensor(found, dtype=torch.uint8).T.unsqueeze(1)
    transitions = role_transitions(before, after)
    assert int(transitions.sum()) == sum(max(pair) <= BOTH for pair in found)
    assert torch.equal(transitions.T, role_transitions(after, before))
    assert int(transitions.diagonal().sum()) == sum(one == other <= BOTH for one, other in found)
