"""The commands beside Lightning's verbs, each a module: ``lightning-attr prepare|inspect|sweep|evaluate|report``."""
