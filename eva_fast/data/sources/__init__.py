"""Where images come from: folders, lists, tar shards, streams, datasets, and mixes of them."""
