"""The report of a dataset: numbers are collected first, drawn second, and laid out last."""
