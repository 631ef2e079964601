"""Recipes: their parameters, and plans that backends write."""
