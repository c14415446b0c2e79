"""Balanced k-means over a sample that Ray actors hold in parts."""
