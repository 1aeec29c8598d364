"""Dataset cards: what each dataset is, whose it is, where its figures are stated, and how it lies on disk."""

from components.catalog.cards import DatasetCard, Fault, Layout, Source, list_cards, load_card

__all__ = ["DatasetCard", "Fault", "Layout", "Source", "list_cards", "load_card"]
