"""The verbs of mimeo, one a module, each a thin combination of engine parts."""
