"""The body part of a header and that of the dataset card."""

from __future__ import annotations

import numpy as np
import pytest

from components.catalog.card_files import packaged_cards
from components.ingestion.acquisition_headers import acquisition_from_sidecar
from components.ingestion.body_parts import agree, examined_part
from components.samples.anatomies import ANATOMIES


@pytest.mark.parametrize(
    ("stated", "card", "part"),
    [
        ("HEAD", "brain", "brain"),
        ("Head", "brain", "brain"),
        ("SKULL", "brain", "brain"),
        ("CHEST", "heart", "heart"),
        ("CHEST", "breast", "breast"),
        ("PELVIS", "prostate", "prostate"),
        ("LEG", "knee", "knee"),
        ("LOWER EXTREMITY", "knee", "knee"),
        ("ABDOMEN", "liver", "liver"),
        ("lower_extremity", "knee", "knee"),
        ("Lower Extremities", "knee", "knee"),
        ("LOWER LEG", "knee", "knee"),
        ("HEAD^NECK", "brain", "brain"),
        ("Head and  Neck", "brain", "brain"),
        ("ABDOMEN AND PELVIS", "prostate", "prostate"),
        ("chest/abdomen", "liver", "liver"),
        ("SPINE", "cspine", "cspine"),
        # A header that states more than the card is right.
        ("CSPINE", "spine", "cspine"),
        ("KIDNEY", "abdomen", "kidney"),
        ("BRAIN", "head and neck", "brain"),
        ("UPPER EXTREMITY", "knee", "upper extremity"),
        # Another body part is not hidden by the card.
        ("KNEE", "brain", "knee"),
        ("HEAD", "knee", "head"),
        ("HEAD", None, "head"),
        # A header that states nothing, or what no body part is called.
        (None, "brain", "brain"),
        ("", "brain", "brain"),
        ("MUELLER", "brain", "brain"),
        ("and", "brain", "brain"),
    ],
)
def test_region_of_a_header_stands_for_the_body_part_of_the_card(stated: str | None, card: str | None, part: str) -> None:
    sidecar = {} if stated is None else {"BodyPartExamined": stated}
    assert examined_part(stated, card) == acquisition_from_sidecar(sidecar, np.eye(4), card).anatomy == part


@pytest.mark.parametrize(
    ("header", "card", "expected"),
    [
        ("brain", "brain", True),
        ("cspine", "spine", True),
        ("kidney", "abdomen", True),
        ("brain", "head and neck", True),
        (None, "brain", True),
        ("brain", None, True),
        ("knee", "brain", False),
        ("head", "knee", False),
        ("chest", "brain", False),
        ("shoulder", "knee", False),
        ("ear", "heart", False),
        ("upper extremity", "knee", False),
        ("whole body", "brain", False),
        ("wholebody", "whole body", True),
    ],
)
def test_body_parts_agree_if_one_lies_in_the_other(header: str | None, card: str | None, expected: bool) -> None:
    assert agree(header, card) is expected


def test_headers_of_generated_patients_state_the_body_part_of_their_cards() -> None:
    generated = [card for card in packaged_cards() if card.generated]
    assert len(generated) > 10
    for card in generated:
        assert card.generated is not None
        stated = ANATOMIES[card.generated.anatomy].name.split()[0].upper()
        assert examined_part(stated, card.anatomy) == card.anatomy, card.id
