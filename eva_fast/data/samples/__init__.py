"""What is made of an image: named fields, each a function of the item and of the sample's seed."""
