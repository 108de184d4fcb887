"""How far the matchers follow a graph."""

#: Nodes between two landmarks of attention: Softmax, products, caches, a scale and its constants. Exporters write a
#: dozen at most; a longer chain is something else, and a made-up one must not take for ever.
LONGEST_CHAIN = 24
