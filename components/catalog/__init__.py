"""Dataset cards: what each dataset is, whose it is, and how it lies on disk."""

from components.catalog.cards import DatasetCard, Layout, list_cards, load_card

__all__ = ["DatasetCard", "Layout", "list_cards", "load_card"]
