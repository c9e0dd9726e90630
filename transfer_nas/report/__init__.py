"""A page about runs: one file of HTML, opens without a network. ``python -m transfer_nas.report``.

`page.content` gathers the views, one module each; `page.render` makes HTML of them. A view is data
(`charts.py`); ``static/charts.js`` draws it with Apache ECharts. Reads run directories through
`transfer_nas.runs` and imports no Keras.
"""
