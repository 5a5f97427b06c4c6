"""Flipped bits and cut ends in the files of one voter's ledger: each is found, or nothing is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.damage_ledger.campaign import AT_OPEN, EQUAL, IN_SERVICE, THROUGH, Campaign, Damage

SEED = 7
# Flips, cuts: a part of what scripts/damage-ledger does (200 and 50 in each kind of file).
CASES = {"ledger": (60, 20), "wal": (20, 5), "current": (20, 5)}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("damage"), seed=SEED)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", CASES)
def test_damage_is_found_or_nothing_is_lost_and_the_other_voters_take_none(
    campaign: Campaign, kind: str
) -> None:
    flips, cuts = CASES[kind]

    cases = list(campaign.cases(kind, flips=flips, cuts=cuts))

    ends = Counter(case.end for case in cases)
    assert [str(case) for case in cases if case.end == THROUGH] == []
    assert len(cases) == flips + cuts
    match kind:
        case "ledger":  # rows that SQLite cannot check are found by the others, and only by them
            assert ends[IN_SERVICE] > flips // 4
            assert any(case.doctor for case in cases) and not all(case.doctor for case in cases)
        case "wal":  # what was lost of it stands in the journal
            assert ends[EQUAL] > 0
        case _:  # one bit of CURRENT turns its line end into another blank
            assert ends[AT_OPEN] >= len(cases) - 5
    campaign.assert_others_are_well()


def test_a_case_without_damage_is_told_as_one(campaign: Campaign) -> None:
    """The campaign can tell both ways: an image that nothing damaged is equal, and doctor agrees."""
    case = campaign._case(Damage("vote", "vote", 16, None))

    assert (case.end, case.doctor) == (EQUAL, False)


@pytest.mark.parametrize("words", [b"label TEXT", b"output_bytes INTEGER", b"WHERE due_ms IS NOT"])
def test_a_bit_in_the_definition_of_a_table_or_index_is_found_at_open(
    campaign: Campaign, words: bytes
) -> None:
    """Seeds 1 and 3 of the script: the file's structure is whole, and no entry can be applied."""
    file = "ledger-0/ledger.db"
    at = (campaign.image / file).read_bytes().index(words)

    case = campaign._case(Damage("ledger", file, at + 2, 0))

    assert (case.end, case.doctor) == (AT_OPEN, True), case
