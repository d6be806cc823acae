"""Recipes: the schema of a training run, its YAML with line numbers, its mistakes, and the recipes that ship."""
