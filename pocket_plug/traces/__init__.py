"""Traces read back from a file: listed, summed up, compared, drawn, shown as a page, sent on. No SDK is needed for it.

`recorded` reads the file, `open_spans` what goes on right now beside it; `index` keeps in short what is in it, `retention` ends
it. `summary` is a line for each run, `by_name` one for each name (`figures`), `comparing` has two runs, `failing` what failed and
where (`frames`). `drawing` is the tree for terminals, `folding` what of it is summed up; `page` is the one for browsers, whose
files are in `viewer`. `watch` follows a run, `send` replays a file into a backend.
"""
