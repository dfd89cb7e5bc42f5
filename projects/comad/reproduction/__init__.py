"""The tables of `reproduce`, by name."""

from projects.comad.reproduction import adjusting, anomalies, fusion, naming, vocabulary

TABLES = {
    "anomalies": anomalies.TABLE,
    "adjusting": adjusting.TABLE,
    "naming": naming.TABLE,
    "fusion": fusion.TABLE,
    "vocabulary": vocabulary.TABLE,
}
