"""Tables as people save them: separators, blank lines, and quotation marks that are not closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import BadInput
from components.ingestion.annotations.tables import read_rows, read_titles

TITLES = ["participant_id", "notes", "group"]


def _table(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tabs.tsv", "participant_id\tnotes (a, b, c, d)\tgroup\nsub-1\tx, y\tpatient\n"),
        ("tabs.TSV", "participant_id\tnotes (a, b, c, d)\tgroup\nsub-1\tx, y\tpatient\n"),
        ("commas.tsv", 'participant_id,"notes (a, b, c, d)",group\nsub-1,"x, y",patient\n'),
        ("blank.csv", '\r\n\r\nparticipant_id;"notes (a, b, c, d)";group\r\nsub-1;"x, y";patient\r\n'.replace(", b, c, d", "")),
        ("quoted.tsv", 'participant_id\t"notes\t(a, b, c)"\tgroup\nsub-1\t"x, y"\tpatient\n'),
    ],
)
def test_the_separator_of_a_table_is_found(tmp_path: Path, name: str, text: str) -> None:
    table = _table(tmp_path, name, text)
    assert [title.split()[0] for title in read_titles(table)] == TITLES
    assert read_rows(table)[1] == ("sub-1", "x, y", "patient")


@pytest.mark.parametrize("second", ['says "hi"', "fine"])
def test_a_quotation_mark_that_is_not_closed_joins_no_rows(tmp_path: Path, second: str) -> None:
    """Else the first patient would get the cells of the second."""
    rows = ["\t".join(TITLES), 'sub-1\t"5 mm\tpatient', f"sub-2\t{second}\tcontrol"]
    with pytest.raises(BadInput, match="row 2 on: a quotation mark that is neither closed nor doubled"):
        read_rows(_table(tmp_path, "participants.tsv", "\n".join(rows) + "\n"))


def test_a_closed_quotation_mark_before_more_text_harms_nothing(tmp_path: Path) -> None:
    rows = read_rows(_table(tmp_path, "participants.tsv", 'participant_id\tnotes\nsub-1\t"left" temporal\n'))
    assert rows[1] == ("sub-1", "left temporal")


def test_a_cell_may_be_as_long_as_a_report(tmp_path: Path) -> None:
    text = "word " * 40_000
    assert read_rows(_table(tmp_path, "reports.csv", f"id,report\n1,{text}\n"))[1] == ("1", text)


def test_quotation_marks_within_a_cell_are_text(tmp_path: Path) -> None:
    table = _table(tmp_path, "reports.csv", 'key,report\n1,a 5" lesion\n2,"the ""same"",\nin two lines"\n')
    assert read_rows(table)[1:] == (("1", 'a 5" lesion'), ("2", 'the "same",\nin two lines'))
