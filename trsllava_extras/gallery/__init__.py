"""Galleries of any size, in partitions, here or on a cluster."""
