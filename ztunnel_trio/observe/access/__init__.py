"""One line a connection, and its counters: what operators read first.

`facts` is what is known of a connection, `labels` what its metrics are labelled with, `record` its way from
acceptance to the one line. The words of that line are in `observe.words`.
"""
