"""Shared code of the course on unsupervised semantic segmentation.

Importing the package does no work: no seeds, no downloads, no device is picked.
"""

__version__ = "0.1.0"
