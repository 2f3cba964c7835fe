"""How good a model is: per-document sums in float64, their totals, and what makes two numbers
comparable.
"""
