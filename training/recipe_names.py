"""The names of the recipes, apart from them so that `--help` does not wait for torch."""

RECIPE_NAMES = ("photos", "residual", "digits", "digits-residual")
