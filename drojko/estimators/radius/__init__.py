"""How large the ambiguity set should be: by cross-validation, environments or inference."""

from drojko.estimators.radius.select import RadiusSelection, select_radius

__all__ = ["RadiusSelection", "select_radius"]
