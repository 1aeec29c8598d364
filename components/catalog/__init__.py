"""Dataset cards: content, license, sources of the statistics and file layout of each dataset."""

from components.catalog.card_files import CardFault, list_cards, load_card
from components.catalog.cards import DatasetCard, GeneratedSource, Source
from components.catalog.layout import Layout

__all__ = ["CardFault", "DatasetCard", "GeneratedSource", "Layout", "Source", "list_cards", "load_card"]
