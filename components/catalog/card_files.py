"""Files of dataset cards: one YAML file for each dataset, read and checked.

Cards are stored in ``components/catalog/datasets/`` and in the user's own folder (``OMNIMRI_HOME/cards``; ``OMNIMRI_CARDS``
overrides it).
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from components.catalog.cards import OTHER_FORMATS, READABLE_FORMATS, Access, DatasetCard, GeneratedSource, ServerSource, Source
from components.catalog.layout import BoxTable, LabelTable, Layout
from components.errors import BadInput
from components.home import Home
from components.registries import FORMATS, TASKS

logger = logging.getLogger(__name__)
FOLDER = Path(__file__).parent / "datasets"


@dataclass(frozen=True)
class CardFault:
    """An error in a card: file, field, error and remedy."""

    file: str
    field: str
    what: str
    remedy: str

    def sentence(self) -> str:
        """Return the field and its error."""
        return f"{self.field}: {self.what}" if self.field else self.what


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's loader is several times faster, if PyYAML has it


class _Loader(_SafeLoader):
    """Safe YAML loader that rejects duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        duplicate = next((key for key in keys if keys.count(key) > 1), None)
        if duplicate is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {duplicate!r}", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def parse_card(path: Path) -> DatasetCard | list[CardFault]:
    """Read a card from its file; return all faults of an invalid card."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506 (a subclass of SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        return [CardFault(str(path), "", f"cannot be read: {type(error).__name__}", "give a YAML file in UTF-8")]
    except yaml.YAMLError as error:
        return [CardFault(str(path), "", " ".join(str(error).split()), "fix the YAML at that line")]
    if not isinstance(content, dict):
        return [CardFault(str(path), "", "not a mapping of fields", "begin with 'id: ...'; docs/catalog.md has an example")]
    try:
        card = DatasetCard.model_validate(content)
    except ValidationError as error:
        return [_card_fault(path, [str(key) for key in detail["loc"]], detail["type"], detail["msg"]) for detail in error.errors()]
    if card.id != path.stem:
        return [
            CardFault(str(path), "id", f"the id is {card.id!r}, but the file has another name", "give id and file the same name")
        ]
    return card


_PLAIN_FAULTS = {
    "missing": "required, and missing",
    "string_type": "not a text",
    "string_too_short": "an empty text",
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "bool_type": "neither true nor false",
    "bool_parsing": "neither true nor false",
    "tuple_type": "not a list",
    "list_type": "not a list",
    "dict_type": "not a mapping of fields",
    "model_type": "not a mapping of fields",
    "string_pattern_mismatch": "not of the pattern of this field",
}
"""Pydantic's type of an error -> the fault in plain words."""
_MODELS_OF_FIELD: dict[str, type[BaseModel]] = {
    "generated": GeneratedSource,
    "layout": Layout,
    "pacs": ServerSource,
    "tables": LabelTable,
    "boxes": BoxTable,
    "sources": Source,
}


def _card_fault(path: Path, where: list[str], kind: str, message: str) -> CardFault:
    """Convert a pydantic error; the remedy is the description of the field."""
    model, description = _locate(where)
    if kind == "extra_forbidden":
        return CardFault(str(path), ".".join(where), "no such field", f"one of: {', '.join(model.model_fields)}")
    stated = "not one of the values:" if kind == "literal_error" else "not"
    text = _PLAIN_FAULTS.get(kind, message.removeprefix("Value error, ").replace("Input should be", stated))
    return CardFault(str(path), ".".join(where), text, description or "fix the card")


def _locate(where: list[str]) -> tuple[type[BaseModel], str]:
    """Return the model that contains the field at a path of keys, and the description of that field or of the nearest above it."""
    model: type[BaseModel] = DatasetCard
    description = ""
    for key in where:
        field = model.model_fields.get(key)
        description = (field.description if field else None) or description
        model = _MODELS_OF_FIELD.get(key, model)
    return model, description


def card_folders() -> tuple[Path, ...]:
    """Return the folders that contain cards: that of the package, then that of the user."""
    return FOLDER, Home.open().cards


def card_paths() -> dict[str, Path]:
    """Return id -> file of every card.

    Raises:
        BadInput: a user's card has the id of a packaged card.
    """
    paths: dict[str, Path] = {}
    for folder in card_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in paths:
                raise BadInput(
                    "a packaged card already has this id", where=str(path), remedy="give your card another id and file name"
                )
            paths[path.stem] = path
    return dict(sorted(paths.items()))


def load_card(dataset_id: str) -> DatasetCard:
    """Read one card.

    Raises:
        BadInput: the card does not exist, or its fields are invalid.
    """
    path = card_paths().get(dataset_id)
    if path is None:
        user_folder = card_folders()[-1]
        raise BadInput(
            "no such dataset card",
            where=dataset_id,
            remedy=f"omnimri catalog list shows the available cards; add your own to {user_folder}",
        )
    return _require_valid(parse_card(path))


def list_cards() -> list[DatasetCard]:
    """Return all valid cards, sorted by id. An invalid one is logged and left out: it must not hide the others."""
    cards = []
    for path in card_paths().values():
        try:
            cards.append(_require_valid(parse_card(path)))
        except BadInput as error:
            logger.warning("%s", error)
    return cards


def packaged_cards() -> list[DatasetCard]:
    """Return the cards packaged with OmniMRI, sorted by id."""
    return [_require_valid(parse_card(path)) for path in sorted(FOLDER.glob("*.yaml"))]


def _require_valid(parsed: DatasetCard | list[CardFault]) -> DatasetCard:
    if isinstance(parsed, DatasetCard):
        return parsed
    if len(parsed) == 1:
        (fault,) = parsed
        raise BadInput(f"the card is invalid: {fault.sentence()}", where=fault.file, remedy=fault.remedy)
    faults = "; ".join(f"{fault.sentence()} ({fault.remedy})" for fault in parsed)
    raise BadInput(f"the card has {len(parsed)} faults: {faults}", where=parsed[0].file, remedy="correct each of them")


def filter_cards(
    cards: Iterable[DatasetCard], *, anatomy: str | None, task: str | None, access: str | None, file_format: str | None
) -> list[DatasetCard]:
    """Return the cards that match all given criteria.

    Raises:
        BadInput: a criterion has a value that no card can have.
    """
    choices = {"task": tuple(TASKS), "access": get_args(Access), "format": (*READABLE_FORMATS, *FORMATS, *OTHER_FORMATS)}
    for name, value in (("task", task), ("access", access), ("format", file_format)):
        if value is not None and value not in choices[name]:
            raise BadInput(f"no such {name}: {value}", where=f"--{name}", remedy=f"one of: {', '.join(choices[name])}")
    return [
        card
        for card in cards
        if (anatomy is None or card.anatomy == anatomy)
        and (task is None or task in card.tasks)
        and (access is None or card.access == access)
        and (file_format is None or file_format in card.formats)
    ]
