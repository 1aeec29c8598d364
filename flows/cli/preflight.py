"""Checks of a command's settings and paths before Prefect is imported and a server starts: a usage error answers within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput
from components.home import Home
from components.settings import DatasetSettings, IngestionSettings, ModelSettings, PacsSettings, Settings

if TYPE_CHECKING:
    from components.catalog import DatasetCard

CORPUS_SUMMARY = "corpus.json"
MODEL_URIS = ("models:/", "runs:/")


def check_run(settings: Settings) -> None:
    """Check everything that a whole run depends on.

    Raises:
        BadInput: a dataset, the pseudonym key or a model folder of the settings is wrong.
    """
    check_datasets(settings.datasets, settings.ingestion, settings.pacs)
    check_model_folders(settings.model)


def check_code() -> None:
    """Warn before a training that its model cannot be promoted, because the commit of the code is unknown."""
    from components.progress import report
    from components.provenance import git_commit

    if git_commit() == "unknown":
        remedy = "work in a git clone, or set OMNIMRI_COMMIT"
        report(f"warning: the code has no git commit: a model trained with it stays candidate ({remedy})")


def check_datasets(datasets: tuple[DatasetSettings, ...], ingestion: IngestionSettings, pacs: PacsSettings) -> None:
    """Check the card, the source and the pseudonym key of each dataset. No server is contacted.

    Raises:
        BadInput: no such card or folder, a faulty card, a missing key file, another key than that of the data, the published
            demo key for real patients, or a damaged pin of the data.
    """
    from components.ingestion.deidentification.pseudonyms import check_key, find_key, require_same_key

    home = Home.open()
    check_pin(home)
    key = find_key(ingestion, home)
    for dataset, card in zip(datasets, check_cards(datasets), strict=True):
        _check_source(dataset, card, pacs)
        if key is not None:
            check_key(key, card)
            require_same_key((key,), card.id, home.data)


def check_pin(home: Home) -> None:
    """Check the pin of the data, if there is one: otherwise a fault would be reported only after all sources have been read.

    Raises:
        BadInput: it is damaged, or pins another folder.
    """
    from components.versioning import DataRepository
    from components.versioning.pin import Pin

    Pin.read(DataRepository(home.data.parent, home.data).pin)


def check_cards(datasets: tuple[DatasetSettings, ...]) -> list[DatasetCard]:
    """Read the dataset cards.

    Raises:
        BadInput: no such card, or a faulty one.
    """
    from components.catalog import load_card

    return [load_card(dataset.card) for dataset in datasets]


def _check_source(dataset: DatasetSettings, card: DatasetCard, pacs: PacsSettings) -> None:
    from components.ingestion.source_listing import refuse_own_folders
    from components.pacs.source import find_source
    from components.samples import check_sample

    if find_source(dataset, card, pacs) is not None:
        return
    if dataset.path is not None:
        check_folder(dataset.path, f"source folder of {dataset.card}", "correct datasets.path in the profile")
        home = Home.open()
        refuse_own_folders(dataset.path, (home.data, home.root), allowed=home.sources)
    else:
        check_sample(card, dataset.patients)


def check_folder(path: Path, role: str, remedy: str) -> None:
    """Check that a folder exists.

    Raises:
        BadInput: it does not.
    """
    if path.exists() and not path.is_dir():
        raise BadInput(
            f"a file, not a folder ({role})", where=str(path), remedy="name the folder around it; unpack an archive first"
        )
    if not path.is_dir():
        raise BadInput(f"no such folder ({role})", where=str(path), remedy=remedy)


def check_model_folders(model: ModelSettings) -> None:
    """Check the local tokenizer and backbone of the settings.

    Raises:
        BadInput: no such folder.
    """
    for name in ("tokenizer", "backbone"):
        if (folder := getattr(model, name)) is not None:
            check_folder(folder, f"model.{name}", f"correct model.{name} in the profile, or leave it out")


def check_corpus() -> None:
    """Check that there is a curated corpus.

    Raises:
        BadInput: there is none.
    """
    root = Home.open().curated
    if not (root / CORPUS_SUMMARY).is_file():
        raise BadInput("no curated corpus", where=str(root), remedy="run omnimri curate first")


def check_model(model: str) -> None:
    """Check that a model is an MLflow URI or a saved model folder.

    Raises:
        BadInput: neither.
    """
    if not model.startswith(MODEL_URIS) and not (Path(model) / "config.json").is_file():
        raise BadInput("no saved model", where=model, remedy="a folder of save_pretrained, or e.g. models:/omnimri@staging")
