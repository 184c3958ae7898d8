"""Small datasets as their own libraries write them; `rows` is what they hold. `make.py` wrote them."""
