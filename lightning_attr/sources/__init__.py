"""Where images and captions come from: COCO, folders, tables, shards; one small file each.

This module imports nothing: processes that decode images import it on their way to ``sources.places``.
"""
