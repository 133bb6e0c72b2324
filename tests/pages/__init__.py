"""The code of every page runs: README.md, CONTRIBUTING.md, docs/, and what lies in examples/.

A page needs nothing but its blocks. They run in page order in one temporary folder, with the files of
`materials` in it and sizes cut by `small`; Python in one namespace, `eva-fast` in this process,
torchrun's processes as one. A comment right before a block says what the page does not show:

    <!-- not run: needs two machines -->              it is only read: syntax, and our flags and values
    <!-- before: eva-fast pretrain --out runs/s -->   runs first: what a reader has from elsewhere

Comments at the end of a Python block are what it prints; with `...` at their end, how that begins.
Blocks of yaml are options of a run; those of text and json are only shown. No other language is known,
and a block without one is an error.
"""
