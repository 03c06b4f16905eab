"""A pass over a validation set: its sums, and what it shows besides: confusions, ROC curves, mistakes, nearest neighbours."""
