"""What `reproduce` shows: tables over seeds on drawn faces, with what was expected of them."""

from projects.forgery_nas.reproduction import metric, operators, planted, search

TABLES = {"operators": operators.TABLE, "search": search.TABLE, "metric": metric.TABLE, "planted": planted.TABLE}
