"""The commands beside Lightning's verbs, such as ``prepare`` and ``report``, each a module; and where they write."""
