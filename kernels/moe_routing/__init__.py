"""Routing of tokens to experts: scores, top-K choice, losses and stable sort."""
