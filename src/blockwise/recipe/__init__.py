"""The recipe: how a cell trains, the same for all cells of a study."""

from blockwise.recipe.recipe import Recipe

__all__ = ["Recipe"]
