"""A run, or several beside each other, as one HTML page that needs nothing else.

    report    the function, top to bottom
    run       what a run's folder says
    metrics   its metrics.jsonl as columns, and what happened in it
    thin      columns of a million lines as some hundred points
    kinds     which quantities have a chart
    charts    the curves, drawn by Bokeh
    pictures  what the run has drawn, small enough for a page
    tables    key figures, what differs, kernels, environment, options
    page/     the template, its style and its script

Jinja2 and Bokeh are imported where a page is made: `pip install 'eva-fast[report]'`.
"""
