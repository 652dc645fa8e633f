"""Bundles measured: the parity ladder (`verify`) and the comparison of runtimes (`bench`)."""
