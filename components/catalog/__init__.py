"""Dataset cards: content, license, sources of the statistics and file layout of each dataset."""

from components.catalog.cards import CardFault, DatasetCard, GeneratedSource, Layout, Source, list_cards, load_card

__all__ = ["CardFault", "DatasetCard", "GeneratedSource", "Layout", "Source", "list_cards", "load_card"]
