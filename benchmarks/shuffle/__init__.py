"""How well loaders shuffle data that lie sorted by class: ``make bench SUITE=shuffle``.

`orders` is Forebay's order and the full shuffle, `peer_orders` the peers', by their own code in their own environment;
`quality` measures orders, and knows none of them.
"""
