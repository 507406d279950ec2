"""``lightning-attr prepare coco``: make a store of images with captions in COCO's format."""
