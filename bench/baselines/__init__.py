"""Delta attention beside the usual ways to make a key/value cache smaller: one model, one text, one measure.

    python -m bench.baselines            # measure, write the record, the page and the plot
    python -m bench.baselines --tables   # the page and the plot alone, from the committed record

Every method is a plain function over the keys, values and queries of one layer, written to be read and to be exact
about bytes, not to be fast. None of them looks into the future: what a query reads was decided by tokens before it.
"""
