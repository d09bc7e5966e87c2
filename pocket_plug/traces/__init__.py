"""Reads traces from a file: lists, summarizes, compares and draws them, shows them as a page, sends them. Needs no SDK.

`recorded` reads the file, `open_spans` the files of spans that are still open; `index` is an SQLite index of it; `retention`
limits its size and age. `summary` makes a line for each run, `by_name` one for each span name (`figures`: their statistics);
`comparing` compares two runs; `failing` finds what failed and where (`frames`). `drawing` draws a tree in the terminal, `folding`
decides which of its spans are summarized; `page` makes the HTML page, whose parts are in `viewer`. `watch` follows a running run,
`send` sends a file to a backend.
"""
